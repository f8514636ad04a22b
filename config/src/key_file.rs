//! `mesh.gossip.keys: {file: …}`: one key a line, `#` starts a comment, the first key sends.
//!
//! A file of its own so that the configuration can be shown, shared and kept in a repository. The file is the
//! authority: it is read again with every reload, and nothing remembers a key that is no longer in it.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::forms;
use crate::keys::KEYS_MAX;
use crate::settings::Key;

/// What a file held, and whether everybody can read it.
pub(crate) struct Found {
    pub keys: Vec<Key>,
    pub readable_by_all: bool,
}

/// Reads every key.
///
/// # Errors
/// Each sentence names the file and, where there is one, the line; none shows a key.
pub(crate) fn read(path: &Path) -> Result<Found, Vec<String>> {
    let shown = path.display();
    let failed = |error: std::io::Error| vec![format!("{shown} cannot be read: {error}")];
    // Looked at before it is opened: to open a pipe waits for its other end.
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if !metadata.is_file() {
        return Err(vec![format!("{shown} is not a file")]);
    }
    let mut bytes = Vec::new();
    let limit = KEY_FILE_MAX as u64 + 1;
    File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes)).map_err(failed)?;
    if bytes.len() > KEY_FILE_MAX {
        return Err(vec![format!("{shown} is larger than {KEY_FILE_MAX} bytes")]);
    }
    let Ok(text) = String::from_utf8(bytes) else {
        return Err(vec![format!("{shown} is not text")]);
    };
    let keys = parse(&text).map_err(|problems| {
        let named = |(line, why): (usize, String)| match line {
            0 => format!("{shown}: {why}"),
            line => format!("{shown}, line {line}: {why}"),
        };
        problems.into_iter().map(named).collect::<Vec<_>>()
    })?;
    Ok(Found { keys, readable_by_all: metadata.permissions().mode() & 0o004 != 0 })
}

/// The keys of a text; problems with their line, 0 for the whole.
fn parse(text: &str) -> Result<Vec<Key>, Vec<(usize, String)>> {
    let mut keys: Vec<Key> = Vec::new();
    let mut problems = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        match forms::key(line) {
            Ok(key) if keys.contains(&key) => {
                problems.push((number, "this key stands there twice".to_owned()));
            }
            Ok(key) => keys.push(key),
            Err(why) => problems.push((number, why)),
        }
        if keys.len() > KEYS_MAX || problems.len() > KEYS_MAX {
            problems.push((number, format!("more than {KEYS_MAX} keys")));
            break;
        }
    }
    if keys.is_empty() && problems.is_empty() {
        problems.push((0, "holds no key: make one with `evenkeel keygen`".to_owned()));
    }
    if problems.is_empty() { Ok(keys) } else { Err(problems) }
}

/// Eight keys and a page of comments.
const KEY_FILE_MAX: usize = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    const B: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";

    #[test]
    fn reads_keys_in_order() {
        let text = format!("# made in May\n\n{B}\n  {A}  # the old one\r\n");
        assert_eq!(parse(&text), Ok(vec![Key([1; 32]), Key([0; 32])]));
    }

    #[test]
    fn says_which_line_is_wrong_and_shows_no_key() {
        let problems = parse(&format!("{A}\nAAAA\n{A}\n")).expect_err("two lines are wrong");
        assert_eq!(
            problems,
            [
                (2, "3 bytes instead of 32: make one with `evenkeel keygen`".to_owned()),
                (3, "this key stands there twice".to_owned()),
            ]
        );
        assert_eq!(parse("# none\n").expect_err("no key")[0].0, 0);
        let many: String = (0..20).map(|n| format!("{n}\n")).collect();
        assert!(parse(&many).expect_err("no keys").len() <= KEYS_MAX + 2);
    }

    #[test]
    fn what_is_no_file_is_refused_without_waiting() {
        let directory = tempfile::tempdir().expect("a directory");
        assert!(read(directory.path()).is_err_and(|why| why[0].contains("is not a file")));
        assert!(
            read(&directory.path().join("none"))
                .is_err_and(|why| why[0].contains("cannot be read"))
        );
        let large = directory.path().join("large");
        std::fs::write(&large, vec![b'#'; KEY_FILE_MAX + 1]).expect("written");
        assert!(read(&large).is_err_and(|why| why[0].contains("larger than")));
    }
}
