"""Data: a name, folder or file becomes train, validation and test samples."""
