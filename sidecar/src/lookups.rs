//! Names outside the mesh, resolved as this machine does it.
//!
//! The machine's resolver blocks a thread for as long as its servers let it wait, and goes on when nobody waits for the answer
//! any more. An application that asks for one new name after another while they are silent would have hundreds of threads, each with a
//! socket, and everybody's names would queue behind them. So there are [`LOOKUPS_MAX`] at a time in the whole process, each holds its
//! place until the resolver is done with it, and whoever has no answer within [`LOOKUP_TIMEOUT`] is told so.
//!
//! Why no resolver of our own: what a name means here is for the machine to say (`/etc/hosts`, nsswitch.conf, a local cache).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

/// The look-ups of this process.
#[derive(Debug, Clone)]
pub struct Lookups(Arc<Semaphore>);

impl Default for Lookups {
    fn default() -> Lookups {
        Lookups(Arc::new(Semaphore::new(LOOKUPS_MAX)))
    }
}

impl Lookups {
    /// The first address of a name, with this port. Must be called within a `LocalSet`, or a local runtime.
    ///
    /// # Errors
    /// A sentence: there is none, or the resolver does not answer.
    pub async fn resolve(&self, host: &str, port: u16) -> Result<SocketAddr, String> {
        let resolving = async {
            let places = Arc::clone(&self.0);
            let place = places.acquire_owned().await.expect("it is never closed");
            let host = host.to_owned();
            // A task of its own: the place is taken for as long as the thread is, whoever still waits.
            tokio::task::spawn_local(async move {
                let found = tokio::net::lookup_host((host, port)).await;
                drop(place);
                found.ok().and_then(|mut found| found.next())
            })
            .await
        };
        match tokio::time::timeout(LOOKUP_TIMEOUT, resolving).await {
            Ok(Ok(Some(address))) => Ok(address),
            Ok(_) => Err(format!("{host} does not resolve")),
            Err(_) => Err(format!(
                "{host} was not resolved within {LOOKUP_TIMEOUT:?}: see whether this machine's resolver answers"
            )),
        }
    }
}

/// As many names as are resolved at a time.
const LOOKUPS_MAX: usize = 32;
/// Longer than resolvers wait before they ask the next server.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(6);

#[cfg(test)]
mod tests {
    use std::future::Future as _;
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    #[tokio::test(flavor = "local")]
    async fn a_place_is_taken_until_the_resolver_is_done_whoever_has_left() {
        let lookups = Lookups::default();
        {
            let mut resolving = pin!(lookups.resolve("localhost", 1));
            assert!(resolving.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        }
        assert_eq!(lookups.0.available_permits(), LOOKUPS_MAX - 1, "its thread is at work");
        let all = lookups.0.acquire_many(u32::try_from(LOOKUPS_MAX).unwrap());
        tokio::time::timeout(Duration::from_secs(60), all).await.unwrap().unwrap().forget();
    }

    #[tokio::test(flavor = "local", start_paused = true)]
    async fn a_resolver_that_is_silent_holds_up_nobody_for_ever() {
        let lookups = Lookups::default();
        let _all = lookups.0.acquire_many(u32::try_from(LOOKUPS_MAX).unwrap()).await.unwrap();
        let refused = lookups.resolve("localhost", 1).await.unwrap_err();
        assert!(refused.contains("see whether this machine's resolver answers"), "{refused}");
    }
}
