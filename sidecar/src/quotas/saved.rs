//! What the quotas thread keeps in the data directory.

/// What outlives the process.
#[derive(serde::Serialize, serde::Deserialize)]
pub struct Saved {
    /// Something may be lent for as long as Doorman clients hold it.
    pub clients: bool,
    /// It ended in good order, and nobody shared resources with it.
    pub alone: bool,
    /// The rosters that it knew, in base64: so a restart that is cut off owns what the others leave it.
    pub rosters: String,
}

/// As JSON, in the data directory.
pub const SAVED_FILE: &str = "quotas.json";
