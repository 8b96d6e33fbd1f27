"""Prune deployed ONNX networks by LEAN: smaller and faster without their training code, and proven.

    import leanonnx

    result = leanonnx.compress("in.onnx", keep=0.25)
    result.save("out.onnx")

The channel analysis, the surgery and the proof are ours; the selection follows LEAN (Schoonhoven, Hendriksen, Pelt,
Batenburg, arXiv 2011.06923).
"""

import lazy_loader

# The stub beside this file has the names.  A process that only measures, or shows help, starts without the rest.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
