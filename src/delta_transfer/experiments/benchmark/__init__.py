"""Published results made again, beside the published ones."""
