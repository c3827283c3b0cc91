"""The prefixes under which collections of data sets are named."""

MOLECULENET, TU = "moleculenet/", "tu/"
