"""A defended model outside the pipeline: as a folder of files, as answers to requests, as a card for people."""
