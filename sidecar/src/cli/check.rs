//! `evenkeel check`: everything that is wrong with a configuration, or one line that says that nothing is.
//!
//! The line says what was read, so that whoever checked the wrong file sees it. With `--print` the effective
//! configuration goes to standard output and the line to standard error: what is printed can be read by a machine.

use std::io::Write as _;
use std::path::Path;

use evenkeel_config::settings::Settings;
use evenkeel_config::{Environment, Loaded, Problems};

use super::args::CheckArgs;
use super::print;

/// Reads the file, or an empty one when none is named.
///
/// # Errors
/// Everything that is wrong with it.
pub fn load(file: Option<&Path>) -> Result<Loaded, Problems> {
    let env = Environment::from_os();
    match file {
        Some(path) => evenkeel_config::load(path, &env),
        None => evenkeel_config::parse("", NO_FILE, &env),
    }
}

/// `evenkeel check`.
///
/// # Errors
/// As [`load`], or what was to be said could not be written.
pub fn check(args: &CheckArgs) -> anyhow::Result<()> {
    let file = args.file.as_deref().or(args.config.as_deref());
    let (loaded, name) = match file {
        Some(file) if file == Path::new("-") => {
            let env = Environment::from_os();
            let read = evenkeel_config::load_from(std::io::stdin().lock(), STANDARD_INPUT, &env);
            (read?, STANDARD_INPUT.to_owned())
        }
        Some(file) => (load(Some(file))?, file.display().to_string()),
        None => (load(None)?, NO_FILE.to_owned()),
    };
    for warning in &loaded.warnings {
        writeln!(std::io::stderr(), "warning: {warning}")?;
    }
    let well = all_is_well(&name, &loaded.settings, loaded.warnings.len());
    if args.print {
        print(&loaded.settings.to_effective_yaml())?;
        writeln!(std::io::stderr(), "{well}")?;
        return Ok(());
    }
    print(&well)
}

/// One sentence: which file, what it makes of this host, how much is in it.
fn all_is_well(name: &str, settings: &Settings, warnings: usize) -> String {
    let counted = [
        (settings.services.len(), "service", "services"),
        (settings.upstreams.len(), "upstream", "upstreams"),
        (settings.ratelimit.resources.len(), "limit", "limits"),
    ];
    let counted = counted.into_iter().filter(|(count, ..)| *count > 0);
    let counted = counted.map(|(count, one, many)| format!(", {}", several(count, one, many)));
    let warned = match warnings {
        0 => String::new(),
        count => format!(", {} above", several(count, "warning", "warnings")),
    };
    format!(
        "{name}: all is well (host {} of the mesh {}{}{warned})",
        settings.node.name,
        settings.mesh.name,
        counted.collect::<String>()
    )
}

fn several(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}

const NO_FILE: &str = "(no file)";
const STANDARD_INPUT: &str = "(standard input)";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_what_was_read() {
        let line = |text: &str, warnings| {
            let env = Environment::named("host-a");
            let loaded = evenkeel_config::parse(text, "a.yaml", &env).unwrap();
            all_is_well("a.yaml", &loaded.settings, warnings)
        };
        assert_eq!(line("", 0), "a.yaml: all is well (host host-a of the mesh evenkeel)");
        let text = "services: [{name: a, address: '127.0.0.1:1'}, {name: b, address: '127.0.0.1:2'}]\n\
                    upstreams: [{name: c, endpoints: ['127.0.0.1:3']}]";
        assert_eq!(
            line(text, 1),
            "a.yaml: all is well (host host-a of the mesh evenkeel, 2 services, 1 upstream, 1 warning above)"
        );
    }
}
