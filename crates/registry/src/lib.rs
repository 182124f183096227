//! OCI distribution client: authenticate, pull, push, retry.
