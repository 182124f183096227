//! Generates the server of the Snapshots service from our own description of its wire format; no `protoc` is needed for it.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto/snapshots.proto");
    let descriptors = protox::compile(["snapshots.proto"], ["proto"])?;
    tonic_prost_build::configure().build_client(false).compile_fds(descriptors)?;
    Ok(())
}
