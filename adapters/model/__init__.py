"""The base model as training sees it: losses, gradients, LoRA layers, the memory of activations."""
