"""A custom rule: NegPos of onnxruntime-extensions outputs the negative and the positive part of a tensor."""

from leanonnx.rules.call import Call, Effect


def neg_pos(call: Call) -> Effect:
    """Each output holds the channels of the input, position by position."""
    return Effect((call.channel_ids(0), call.channel_ids(0)))


RULES = {("ai.onnx.contrib", "NegPos"): neg_pos}
