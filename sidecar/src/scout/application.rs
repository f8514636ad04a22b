//! Asking an application itself whether it lives: its scout port or path, over a kept connection.
//!
//! A byte has to come back, or a response's head: connecting proves nothing, because the kernel accepts connections of a process that stands
//! still. One question is outstanding at a time; whoever asks meanwhile gets its answer, and one not older than [`FRESH`] is used again, so
//! an application is asked at most a thousand times a second by each thread, however many scouts come.
//!
//! Lives on the thread that asks: the receiver's for this host's instances, a worker's for static endpoints.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use evenkeel_config::settings::Scout;
use http::Request;
use http::header::{HOST, USER_AGENT};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;

/// One application and the connection to where it answers scouts.
#[derive(Debug)]
pub struct Application {
    address: SocketAddr,
    scout: Scout,
    answered: Cell<Option<Instant>>,
    asking: RefCell<Option<watch::Receiver<Option<bool>>>>,
    connection: RefCell<Option<Connection>>,
}

#[derive(Debug)]
enum Connection {
    Tcp(TcpStream),
    Http(http1::SendRequest<Empty<Bytes>>),
}

impl Application {
    /// Nothing is asked or opened yet. `address`: the application's own.
    pub fn new(address: SocketAddr, scout: Scout) -> Application {
        Application {
            address,
            scout,
            answered: Cell::new(None),
            asking: RefCell::new(None),
            connection: RefCell::new(None),
        }
    }

    /// Whether it shows life. Waits for as long as it takes, at most [`ANSWER_MAX`].
    pub async fn answers(self: &Rc<Self>) -> bool {
        if self.answered.get().is_some_and(|at| at.elapsed() < FRESH) {
            return true;
        }
        let asking = self.asking.borrow().clone();
        let mut asking = asking.unwrap_or_else(|| self.start());
        // The task that asks is not cancelled with whoever started it.
        let said = asking.wait_for(Option::is_some).await;
        said.is_ok_and(|said| *said == Some(true))
    }

    fn start(self: &Rc<Self>) -> watch::Receiver<Option<bool>> {
        let (tell, asking) = watch::channel(None);
        *self.asking.borrow_mut() = Some(asking.clone());
        let this = Rc::clone(self);
        tokio::task::spawn_local(async move {
            let asked = tokio::time::timeout(ANSWER_MAX, this.ask()).await;
            let lives = matches!(asked, Ok(Ok(())));
            if lives {
                this.answered.set(Some(Instant::now()));
            } else if let Ok(Err(cause)) = asked {
                tracing::debug!(address = %this.address, %cause, "an application does not answer its scout");
            }
            this.asking.borrow_mut().take();
            let _ = tell.send(Some(lives));
        });
        asking
    }

    /// Asks once; on a kept connection that has broken, once more on a new one.
    async fn ask(&self) -> io::Result<()> {
        // A connection that an answer is still missing on is not used again: it is closed with this future.
        let kept = self.connection.borrow_mut().take();
        if let Some(mut connection) = kept
            && self.exchange(&mut connection).await.is_ok()
        {
            *self.connection.borrow_mut() = Some(connection);
            return Ok(());
        }
        let mut connection = self.connect().await?;
        self.exchange(&mut connection).await?;
        *self.connection.borrow_mut() = Some(connection);
        Ok(())
    }

    async fn connect(&self) -> io::Result<Connection> {
        match &self.scout {
            Scout::Tcp(port) => {
                let stream = TcpStream::connect((self.address.ip(), *port)).await?;
                stream.set_nodelay(true)?;
                Ok(Connection::Tcp(stream))
            }
            Scout::Http(_) => {
                let stream = TcpStream::connect(self.address).await?;
                stream.set_nodelay(true)?;
                let (sender, connection) =
                    http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
                tokio::task::spawn_local(async move {
                    // Its errors reach whoever waits for an answer on it.
                    let _ = connection.await;
                });
                Ok(Connection::Http(sender))
            }
        }
    }

    async fn exchange(&self, connection: &mut Connection) -> io::Result<()> {
        match connection {
            Connection::Tcp(stream) => {
                // What it said unasked is no answer.
                let mut unasked = [0; 64];
                while stream.try_read(&mut unasked).is_ok_and(|read| read > 0) {}
                stream.write_all(b"?").await?;
                stream.read_u8().await.map(drop)
            }
            Connection::Http(sender) => {
                let Scout::Http(path) = &self.scout else {
                    return Err(io::ErrorKind::Unsupported.into());
                };
                let request = Request::get(path.as_str())
                    .header(HOST, self.address.to_string())
                    .header(USER_AGENT, "evenkeel-scout")
                    .body(Empty::new())
                    .map_err(io::Error::other)?;
                sender.ready().await.map_err(io::Error::other)?;
                let response = sender.send_request(request).await.map_err(io::Error::other)?;
                let status = response.status();
                Limited::new(response.into_body(), BODY_MAX)
                    .collect()
                    .await
                    .map_err(io::Error::other)?;
                if !status.is_success() {
                    return Err(io::Error::other(format!("status {status}")));
                }
                Ok(())
            }
        }
    }
}

/// An answer is used again for so long.
const FRESH: Duration = Duration::from_millis(1);
/// Then the connection is given up and a new one opened with the next scout.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Of an answer over HTTP.
const BODY_MAX: usize = 16 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    /// Answers on its first connections as told: so many bytes for a byte.
    async fn listener(answer: &'static [u8]) -> (SocketAddr, Rc<Cell<u32>>, Rc<Cell<u32>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (opened, asked) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        let counts = (Rc::clone(&opened), Rc::clone(&asked));
        tokio::task::spawn_local(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                opened.set(opened.get() + 1);
                let asked = Rc::clone(&asked);
                tokio::task::spawn_local(async move {
                    let mut head = [0; 1024];
                    while stream.read(&mut head).await.is_ok_and(|read| read > 0) {
                        asked.set(asked.get() + 1);
                        if stream.write_all(answer).await.is_err() {
                            return;
                        }
                    }
                });
            }
        });
        (address, counts.0, counts.1)
    }

    async fn local<F: Future>(test: F) -> F::Output {
        tokio::task::LocalSet::new().run_until(test).await
    }

    #[tokio::test]
    async fn a_byte_for_a_byte_on_one_connection_for_all_who_ask() {
        local(async {
            let (address, opened, asked) = listener(b"!").await;
            let application = Rc::new(Application::new(address, Scout::Tcp(address.port())));
            let ask = |_| {
                let application = Rc::clone(&application);
                tokio::task::spawn_local(async move { application.answers().await })
            };
            for asked in (0..20).map(ask).collect::<Vec<_>>() {
                assert!(asked.await.unwrap());
            }
            assert_eq!(asked.get(), 1, "they share one answer");
            tokio::time::sleep(2 * FRESH).await;
            assert!(application.answers().await);
            assert_eq!((asked.get(), opened.get()), (2, 1));
        })
        .await;
    }

    #[tokio::test]
    async fn a_path_has_to_answer_2xx() {
        local(async {
            for (answer, lives) in [
                (&b"HTTP/1.1 204 No Content\r\n\r\n"[..], true),
                (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", true),
                (b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n", false),
                (b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n", false),
                (b"nonsense\r\n\r\n", false),
            ] {
                let (address, ..) = listener(answer).await;
                let application =
                    Rc::new(Application::new(address, Scout::Http("/scout".to_owned())));
                let said = tokio::time::timeout(ANSWER_MAX * 20, application.answers()).await;
                assert_eq!(said, Ok(lives), "{}", String::from_utf8_lossy(answer));
            }
        })
        .await;
    }

    #[tokio::test]
    async fn who_accepts_and_says_nothing_does_not_live() {
        local(async {
            let (address, opened, asked) = listener(b"").await;
            let application = Rc::new(Application::new(address, Scout::Tcp(address.port())));
            let said = tokio::time::timeout(Duration::from_millis(50), application.answers()).await;
            assert!(said.is_err());
            // The one who gave up did not end the question: another joins it.
            let said = tokio::time::timeout(Duration::from_millis(50), application.answers()).await;
            assert!(said.is_err());
            assert_eq!((opened.get(), asked.get()), (1, 1));
            let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
            assert!(!Rc::new(Application::new(gone, Scout::Tcp(gone.port()))).answers().await);
        })
        .await;
    }

    #[tokio::test]
    async fn a_connection_that_was_closed_meanwhile_is_opened_again() {
        local(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            tokio::task::spawn_local(async move {
                // One answer for each connection.
                while let Ok((mut stream, _)) = listener.accept().await {
                    let _ = stream.read_u8().await;
                    let _ = stream.write_all(b"!").await;
                }
            });
            let application = Rc::new(Application::new(address, Scout::Tcp(address.port())));
            for _ in 0..3 {
                assert!(application.answers().await);
                tokio::time::sleep(2 * FRESH).await;
            }
        })
        .await;
    }
}
