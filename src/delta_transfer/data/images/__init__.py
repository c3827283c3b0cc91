"""Images: decoding, resizing, augmentation, batches."""
