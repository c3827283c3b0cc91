"""One file per source of images: folders, CSV files, archives, torchvision, the Hub."""
