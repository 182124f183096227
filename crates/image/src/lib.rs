//! Container images as values: names, digests, manifests, layer changes, repository layout.
