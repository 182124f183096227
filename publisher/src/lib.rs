//! Publishes container images into a CernVM-FS repository.
