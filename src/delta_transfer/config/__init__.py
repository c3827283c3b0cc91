"""The options of the commands: documented once, read from flags and YAML files."""
