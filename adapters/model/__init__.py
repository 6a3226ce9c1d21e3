"""The base model in training: losses, gradients, LoRA layers and activation memory."""
