"""The cache of resized images on disk: written once, read by later runs."""
