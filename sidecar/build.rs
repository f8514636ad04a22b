//! Rust code for Doorman's protocol, without `protoc`.
//!
//! Two things are relaxed in what the code is made from, which no peer can see: prost fills in a `required` field that is missing, so
//! such fields are optional to the code, which then tells that one is missing; and ids are bytes to us, so a text field is one of
//! bytes. Reflection shows the protocol as it is written.

use std::error::Error;
use std::path::{Path, PathBuf};

use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FileDescriptorSet};

fn main() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    println!("cargo::rerun-if-changed=proto/doorman.proto");
    let mut protocol: FileDescriptorSet =
        protox::compile([Path::new("proto/doorman.proto")], ["proto"])?;
    std::fs::write(out.join("doorman.bin"), protocol.encode_to_vec())?;
    protocol.file.iter_mut().flat_map(|file| &mut file.message_type).for_each(relax);
    tonic_prost_build::configure()
        .client_mod_attribute("doorman", "#[cfg(test)]")
        .compile_fds(protocol)?;
    Ok(())
}

fn relax(message: &mut DescriptorProto) {
    for field in &mut message.field {
        if field.label() == Label::Required {
            field.set_label(Label::Optional);
        }
        if field.r#type() == Type::String {
            field.set_type(Type::Bytes);
        }
    }
    message.nested_type.iter_mut().for_each(relax);
}
