"""mammo-edge runtime: breast images in, findings out. Never imports torch or onnx."""

__version__ = "0.1.0"
