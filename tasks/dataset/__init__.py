"""Images, phantoms, manifest, expectations, split and the prepared data set."""
