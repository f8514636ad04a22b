//! What the fuzz targets of `tests/fuzz` call: a function each, which takes bytes and panics where a promise is broken.
//!
//! They are part of the crate because what they look at is private to it, and part of the binary never. As tests
//! run each of them over the seeds that `make fuzz` begins with, among which is every find, `make test` keeps them all.

mod connection;
mod heads;
mod windows;

pub use connection::requests_of_a_connection;
pub use heads::{request_head, response_head, trailers};
pub use windows::window_growth;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn run_over_seeds(name: &str, target: fn(&[u8])) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/seeds").join(name);
        let seeds: Vec<_> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(!seeds.is_empty(), "no seeds for {name}");
        for seed in seeds {
            println!("{}", seed.display());
            target(&fs::read(seed).unwrap());
        }
    }

    #[test]
    fn request_heads_of_the_corpus_hold() {
        run_over_seeds("request_head", request_head);
    }

    #[test]
    fn response_heads_of_the_corpus_hold() {
        run_over_seeds("response_head", response_head);
    }

    #[test]
    fn trailers_of_the_corpus_hold() {
        run_over_seeds("trailers", trailers);
    }

    #[test]
    fn connections_of_the_corpus_hold() {
        run_over_seeds("requests_of_a_connection", requests_of_a_connection);
    }

    #[test]
    fn windows_of_the_corpus_hold() {
        run_over_seeds("window_growth", window_growth);
    }
}
