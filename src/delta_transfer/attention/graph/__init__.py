"""A network captured as a graph, of which the part after a tap can be run by itself."""
