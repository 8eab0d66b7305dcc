"""Networks: their training, export and quantization."""
