"""``python -m leanonnx``: the same as the command ``leanonnx``."""

from leanonnx.cli.main import main

if __name__ == "__main__":
    main()
