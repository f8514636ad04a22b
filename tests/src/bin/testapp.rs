//! The application of the end-to-end tests and of the benchmarks: see [`evenkeel_tests::app`].
//!
//! `testapp ADDRESS ID [LEDGER [SCOUT]]`: listens on ADDRESS, calls itself ID, appends executed POSTs to LEDGER, and answers
//! each byte on SCOUT with a byte.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let (Some(address), Some(id)) = (args.next(), args.next()) else {
        eprintln!("usage: testapp ADDRESS ID [LEDGER [SCOUT]]");
        return ExitCode::from(64);
    };
    let Ok(address) = address.parse() else {
        eprintln!("testapp: `{address}` is not an address such as 127.0.0.1:8000");
        return ExitCode::from(64);
    };
    let ledger = args.next().map(Into::into);
    let scout = match args.next().map(|scout| scout.parse()).transpose() {
        Ok(scout) => scout,
        Err(error) => {
            eprintln!("testapp: the scout port: {error}");
            return ExitCode::from(64);
        }
    };
    match evenkeel_tests::app::run(address, id, ledger, scout) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("testapp: {error}");
            ExitCode::FAILURE
        }
    }
}
