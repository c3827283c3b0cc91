"""A run for other programs: ONNX, torch.export, timm, and the Hugging Face Hub."""
