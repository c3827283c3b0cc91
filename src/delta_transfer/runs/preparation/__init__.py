"""What every method of one data set, network and seed starts from."""
