"""The command push: a run and its model card as a repository of the Hugging Face Hub."""
