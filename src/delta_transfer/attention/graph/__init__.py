"""A network taken apart as a graph, so that only what follows a tap is run again."""
