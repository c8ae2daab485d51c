//! One look at a running sensor: `GET /live`, and nothing more of HTTP than that needs.

use std::io::{Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::Duration;

use crate::live_view::LiveView;

/// How long connecting and each read may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Most octets of an answer.
const ANSWER_OCTETS_MAX: u64 = 16 << 20;

/// Why a look failed, as a sentence that says what to do.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// Nobody answers there.
    #[error("no sensor answers at {address}: {cause}; is it running, and is its metrics.listen this address?")]
    Unreachable {
        /// Where.
        address: String,
        /// Why, as the system says it.
        cause: std::io::Error,
    },
    /// Something answers that is no sensor, or an older one.
    #[error("what answers at {address} is no sensor of this version: {what}")]
    Foreign {
        /// Where.
        address: String,
        /// What is wrong with the answer.
        what: String,
    },
}

/// Asks the sensor whose `metrics.listen` is `address`.
///
/// # Errors
/// It cannot be reached, or the answer cannot be read.
pub fn look(address: &str) -> Result<LiveView, LookError> {
    let answer = get(address, "/live").map_err(|cause| LookError::Unreachable { address: address.to_owned(), cause })?;
    read(&answer).map_err(|what| LookError::Foreign { address: address.to_owned(), what })
}

fn get(address: &str, path: &str) -> std::io::Result<Vec<u8>> {
    let mut result = Err(std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address"));
    for candidate in address.to_socket_addrs()? {
        result = TcpStream::connect_timeout(&candidate, PATIENCE);
        if result.is_ok() {
            break;
        }
    }
    let mut stream = result?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    // HTTP/1.0 (RFC 1945): the answer ends with the connection, and comes in one piece.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.take(ANSWER_OCTETS_MAX).read_to_end(&mut answer)?;
    Ok(answer)
}

/// The view in an HTTP answer, or what is wrong with it.
fn read(answer: &[u8]) -> Result<LiveView, String> {
    const GAP: &[u8] = b"\r\n\r\n";
    let head_len = answer.windows(GAP.len()).position(|window| window == GAP).ok_or("the answer is not HTTP")?;
    let (head, body) = answer.split_at(head_len);
    let status = String::from_utf8_lossy(head.split(|&octet| octet == b'\r').next().unwrap_or_default()).into_owned();
    match status.split_whitespace().nth(1) {
        Some("200") => serde_json::from_slice(&body[GAP.len()..]).map_err(|error| format!("/live cannot be read: {error}")),
        Some("404") => Err("it has no /live".to_owned()),
        _ => Err(format!("it says `{status}`")),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn answered(answer: &'static str) -> Result<LiveView, String> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port on loopback");
        let address = listener.local_addr().expect("its address").to_string();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a caller");
            let mut request = [0; 256];
            let len = stream.read(&mut request).expect("a request");
            assert!(request[..len].starts_with(b"GET /live HTTP/1.0\r\n"));
            stream.write_all(answer.as_bytes()).expect("an answer");
        });
        let result = look(&address).map_err(|error| error.to_string().replace(&address, "ADDRESS"));
        server.join().expect("the server");
        result
    }

    #[test]
    fn a_look_is_read_and_whatever_else_answers_is_named() {
        let view =
            answered("HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n{\"uptime_millis\": 7, \"new_key\": 1}").unwrap();
        assert_eq!(view.uptime_millis, 7);
        assert_eq!(
            answered("HTTP/1.0 404 Not Found\r\n\r\n").unwrap_err(),
            "what answers at ADDRESS is no sensor of this version: it has no /live"
        );
        assert_eq!(
            answered("SSH-2.0-OpenSSH_9.6\r\n").unwrap_err(),
            "what answers at ADDRESS is no sensor of this version: the answer is not HTTP"
        );
    }

    #[test]
    fn a_sensor_that_is_not_there_is_said_to_be_missing() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port on loopback");
        let address = listener.local_addr().expect("its address").to_string();
        drop(listener);
        let error = look(&address).unwrap_err().to_string();
        assert!(error.starts_with(&format!("no sensor answers at {address}: ")), "{error}");
        assert!(error.ends_with("is it running, and is its metrics.listen this address?"), "{error}");
    }
}
