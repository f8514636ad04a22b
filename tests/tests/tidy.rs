//! The invariants of ARCHITECTURE.md that can be read off the source text.
//!
//! Each rule names every offender with its line, so that a failure says what to change. An exception is a row
//! in a table here with its reason, never a comment in the offending file.

// A test is its own error handler; clippy's exemption covers only the functions marked `#[test]`.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The crates without IO, tasks, clock and entropy.
const CORES: [&str; 3] = ["balancer", "discovery", "ratelimit"];

/// Lines of a file without its tests.
const LINES_MAX: usize = 600;

/// Files that may be longer, with the reason.
const LONGER: &[(&str, &str)] = &[];

/// What the cores never name. Clippy bans the calls too; this also sees what no lint resolves.
const NOT_IN_CORES: [&str; 11] = [
    "tokio",
    "hyper",
    "rustls",
    "async fn",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "std::fs",
    "std::thread",
    "Instant::now",
    "SystemTime::now",
];

#[test]
fn the_cores_name_no_io_no_tasks_and_no_clock() {
    let mut offenders = Vec::new();
    for core in CORES {
        for file in rust_files(&root().join(core).join("src")) {
            for (number, line) in code_lines(&file) {
                for word in NOT_IN_CORES.iter().filter(|word| names(&line, word)) {
                    offenders.push(format!("{}:{number}: `{word}`", show(&file)));
                }
            }
        }
    }
    assert!(offenders.is_empty(), "the cores are pure:\n{}", offenders.join("\n"));
}

#[test]
fn the_cores_do_not_know_each_other_nor_the_shell() {
    let mut offenders = Vec::new();
    for core in CORES {
        let manifest = fs::read_to_string(root().join(core).join("Cargo.toml")).unwrap();
        // Up to the next table: what is built into the product, not what its tests use.
        let runtime = manifest.split("\n[dependencies]").nth(1).unwrap_or_default();
        let runtime = runtime.split("\n[").next().unwrap_or_default();
        for line in runtime.lines() {
            let name = line.split(['=', '.', ' ']).next().unwrap_or_default();
            let other = name.strip_prefix("evenkeel-").is_some_and(|rest| rest != "config");
            if other || ["tokio", "hyper", "rustls", "axum", "tonic", "prometheus"].contains(&name)
            {
                offenders.push(format!("{core}/Cargo.toml: {name}"));
            }
        }
    }
    assert!(
        offenders.is_empty(),
        "a core may depend on evenkeel-config alone:\n{}",
        offenders.join("\n")
    );
}

#[test]
fn only_membership_names_foca() {
    let allowed = root().join("discovery/src/membership");
    let mut offenders = Vec::new();
    for file in all_rust_files() {
        if file.with_extension("") == allowed
            || file.starts_with(&allowed)
            || file.ends_with("tests/tests/tidy.rs")
        {
            continue;
        }
        for (number, line) in code_lines(&file).into_iter().filter(|(_, line)| names(line, "foca"))
        {
            offenders.push(format!("{}:{number}: {}", show(&file), line.trim()));
        }
    }
    assert!(offenders.is_empty(), "foca stays behind membership.rs:\n{}", offenders.join("\n"));
}

#[test]
fn every_file_says_what_it_is_for() {
    let silent: Vec<_> = all_rust_files()
        .into_iter()
        // The tests of a module that outgrew it are about what that module says.
        .filter(|file| file.file_name().is_none_or(|name| name != "tests.rs"))
        .filter(|file| !fs::read_to_string(file).unwrap().starts_with("//!"))
        .map(|file| show(&file))
        .collect();
    assert!(silent.is_empty(), "these begin without `//!`:\n{}", silent.join("\n"));
}

#[test]
fn no_file_grows_past_what_can_be_read() {
    let mut offenders = Vec::new();
    let mut unused: BTreeSet<&str> = LONGER.iter().map(|(file, _)| *file).collect();
    for file in all_rust_files() {
        let name = show(&file);
        let text = fs::read_to_string(&file).unwrap();
        let code = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        let tests = name.ends_with("tests.rs") || name.contains("/tests/");
        if code.lines().count() > LINES_MAX && !tests && !unused.remove(name.as_str()) {
            offenders.push(format!("{name}: {} lines", code.lines().count()));
        }
    }
    assert!(offenders.is_empty(), "over {LINES_MAX} lines: split them\n{}", offenders.join("\n"));
    assert!(unused.is_empty(), "no longer need their exception: {unused:?}");
}

#[test]
fn nothing_is_left_for_later() {
    // In two parts, so that this file does not name what it looks for.
    let words = [
        concat!("to", "do!("),
        concat!("unimple", "mented!("),
        concat!("#[ig", "nore"),
        concat!("FIX", "ME"),
    ];
    let mut offenders = Vec::new();
    for file in all_rust_files() {
        for (number, line) in fs::read_to_string(&file).unwrap().lines().enumerate() {
            if words.iter().any(|word| line.contains(word)) {
                offenders.push(format!("{}:{}: {}", show(&file), number + 1, line.trim()));
            }
        }
    }
    assert!(offenders.is_empty(), "left for later:\n{}", offenders.join("\n"));
}

#[test]
fn every_crate_takes_the_workspace_lints() {
    for folder in ["config", "balancer", "discovery", "ratelimit", "sidecar", "tests"] {
        let manifest = fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
        assert!(
            manifest.contains("[lints]\nworkspace = true"),
            "{folder}/Cargo.toml opts out of the lints"
        );
        if CORES.contains(&folder) {
            let lib = fs::read_to_string(root().join(folder).join("src/lib.rs")).unwrap();
            assert!(
                lib.contains("#![forbid(unsafe_code)]"),
                "{folder}/src/lib.rs does not forbid unsafe code"
            );
        }
    }
}

#[test]
fn the_commands_in_the_documents_exist() {
    let makefile = fs::read_to_string(root().join("Makefile")).unwrap();
    let targets: BTreeSet<&str> = makefile
        .lines()
        .filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase()))
        .filter_map(|line| line.split_once(':').map(|(target, _)| target))
        .collect();
    let mut offenders = Vec::new();
    for file in documents() {
        let text = fs::read_to_string(&file).unwrap();
        for (at, _) in text.match_indices("make ") {
            // Only as a command: at the start of a line or of a code span.
            if !text[..at].ends_with(['\n', '`']) && !text[..at].ends_with("$ ") {
                continue;
            }
            let word = text[at + 5..]
                .split(|c: char| !c.is_ascii_lowercase() && c != '-')
                .next()
                .unwrap_or_default();
            if !word.is_empty() && !targets.contains(word) {
                offenders.push(format!("{}: make {word}", show(&file)));
            }
        }
    }
    assert!(offenders.is_empty(), "not in the Makefile:\n{}", offenders.join("\n"));
}

#[test]
fn the_links_in_the_documents_resolve() {
    let mut offenders = Vec::new();
    for file in documents() {
        let text = fs::read_to_string(&file).unwrap();
        for (at, _) in text.match_indices("](") {
            let target = text[at + 2..].split(')').next().unwrap_or_default();
            let path = target.split('#').next().unwrap_or_default();
            if path.is_empty() || path.contains("://") || path.starts_with("mailto:") {
                continue;
            }
            if !file.parent().unwrap().join(path).exists() {
                offenders.push(format!("{}: {target}", show(&file)));
            }
        }
    }
    assert!(offenders.is_empty(), "links that lead nowhere:\n{}", offenders.join("\n"));
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn show(file: &Path) -> String {
    file.strip_prefix(root()).unwrap_or(file).display().to_string()
}

fn all_rust_files() -> Vec<PathBuf> {
    let folders = ["config", "balancer", "discovery", "ratelimit", "sidecar", "tests"];
    let files: Vec<_> =
        folders.iter().flat_map(|folder| rust_files(&root().join(folder))).collect();
    assert!(files.len() > 10, "the workspace is not where this test looks for it");
    files
}

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    files(folder, "rs")
}

fn documents() -> Vec<PathBuf> {
    let mut found: Vec<_> = fs::read_dir(root())
        .unwrap()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .collect();
    found.extend(files(&root().join("docs"), "md"));
    found.extend(files(&root().join("tests"), "md"));
    found
}

fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = fs::read_dir(folder) else { return found };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() && path.file_name().is_none_or(|name| name != "target") {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|have| have == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The lines that are code of the product: neither comments nor the test module at the end.
fn code_lines(file: &Path) -> Vec<(usize, String)> {
    if file.ends_with("tests.rs") {
        return Vec::new();
    }
    let text = fs::read_to_string(file).unwrap();
    let code = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let lines = code.lines().enumerate();
    let lines = lines
        .map(|(index, line)| (index + 1, line.split("//").next().unwrap_or_default().to_owned()));
    lines.filter(|(_, line)| !line.trim().is_empty()).collect()
}

/// Whether a line names `word` as a whole word.
fn names(line: &str, word: &str) -> bool {
    let edge = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric() && c != '_');
    line.match_indices(word).any(|(at, _)| {
        edge(line[..at].chars().next_back()) && edge(line[at + word.len()..].chars().next())
    })
}
