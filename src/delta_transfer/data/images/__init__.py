"""Images on their way to a network: decoded, resized, augmented, batched."""
