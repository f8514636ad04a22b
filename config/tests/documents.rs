//! The configurations that the documents print: whoever copies one has a file that `evenkeel check` takes.
//!
//! Every `yaml` block of the README and of `docs/` is a whole file of Evenkeel's and is loaded as the program loads it,
//! with a key file beside it. A block of another program's names that program's file behind the language
//! (```` ```yaml prometheus.yml ````) and has to be listed here, so that a slip of the pen exempts nothing.

// A test is its own error handler; clippy's exemption covers only the functions marked `#[test]`.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use evenkeel_config::{Environment, load};

/// Files of other programs that are written in YAML too.
const OF_OTHERS: [&str; 3] = ["prometheus.yml", "envoy.yaml", "traefik.yml"];

/// One block: where it begins (`docs/operations.md:99`), what its fence says, and its text.
struct PrintedBlock {
    place: String,
    fence: String,
    text: String,
}

#[test]
fn every_printed_configuration_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    // 32 bytes of zeros: any key does, and a real one belongs in no repository.
    fs::write(folder.path().join("gossip.keys"), format!("{}=\n", "A".repeat(43))).unwrap();
    let keys = folder.path().join("gossip.keys");
    fs::set_permissions(&keys, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let state_directory = Some(folder.path().to_owned());
    let environment = Environment { state_directory, ..Environment::named("host-a") };
    let file = folder.path().join("evenkeel.yaml");

    let (mut taken, mut wrong) = (0, Vec::new());
    for block in documents().iter().flat_map(|document| blocks(document)) {
        let mut words = block.fence.split_whitespace();
        match (words.next(), words.next()) {
            (Some("yaml"), None) => {
                fs::write(&file, &block.text).unwrap();
                match load(&file, &environment) {
                    Ok(loaded) if loaded.warnings.is_empty() => taken += 1,
                    Ok(loaded) => wrong.push(format!("{}: {:?}", block.place, loaded.warnings)),
                    Err(problems) => wrong.push(format!("{}: {problems}", block.place)),
                }
            }
            (Some("yaml"), Some(other)) if !OF_OTHERS.contains(&other) => {
                wrong.push(format!("{}: `{other}` is no other program's file", block.place));
            }
            (Some("yml"), _) => wrong.push(format!("{}: write `yaml`", block.place)),
            _ => {}
        }
    }
    assert!(wrong.is_empty(), "printed, and not taken:\n{}", wrong.join("\n"));
    assert!(taken > 5, "{taken} blocks: the documents are not where this test looks for them");
}

/// The README and every page below `docs/`.
fn documents() -> Vec<PathBuf> {
    let root = root();
    let mut found = vec![root.join("README.md")];
    let mut folders = vec![root.join("docs")];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The fenced blocks of a page, those within a list too.
fn blocks(document: &Path) -> Vec<PrintedBlock> {
    let page = fs::read_to_string(document).unwrap();
    let shown = document.strip_prefix(root()).unwrap_or(document).display().to_string();
    let mut lines = (1..).zip(page.lines());
    let mut found = Vec::new();
    while let Some((number, line)) = lines.next() {
        let Some(fence) = line.trim_start().strip_prefix("```") else { continue };
        let indent = line.len() - line.trim_start().len();
        let inside = lines.by_ref().map(|(_, line)| line);
        let text = inside.take_while(|line| line.trim() != "```");
        let text = text.map(|line| line.get(indent..).unwrap_or_default()).collect::<Vec<_>>();
        let (place, fence) = (format!("{shown}:{number}"), fence.trim().to_owned());
        found.push(PrintedBlock { place, fence, text: text.join("\n") });
    }
    found
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}
