//! The CernVM-FS repository format: objects, catalogs, manifest, trust, transactions.
