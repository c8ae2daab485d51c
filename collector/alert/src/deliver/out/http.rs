//! What webhook and Sentinel have in common: a client, and what an answer means.

use std::io::Write;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Certificate, Client, Response, StatusCode};

use super::whole;
use crate::deliver::courier::Outcome;
use crate::deliver::settings::OutputSettings;

/// Of what a receiver says besides its status, so much is shown.
const SAID_LEN_MAX: usize = 300;

/// A client that follows no redirections: a POST that is redirected may arrive nowhere and look delivered.
pub(super) fn client(settings: &OutputSettings) -> Result<Client, Outcome> {
    let limit = Duration::from_secs(settings.timeout_secs);
    let mut builder = Client::builder().timeout(limit).connect_timeout(limit).redirect(reqwest::redirect::Policy::none());
    let failed = |what: String| Outcome::Failed(what, None);
    if !settings.ca_file.as_os_str().is_empty() {
        let path = settings.ca_file.display();
        let pem = std::fs::read(&settings.ca_file).map_err(|error| failed(format!("read {path}: {error}")))?;
        let authorities = Certificate::from_pem_bundle(&pem).map_err(|error| failed(format!("{path}: {}", whole(&error))))?;
        builder = authorities.into_iter().fold(builder, reqwest::ClientBuilder::add_root_certificate);
    }
    builder.build().map_err(|error| failed(format!("prepare HTTP: {}", whole(&error))))
}

/// `body` packed with gzip.
pub(super) fn gzip(body: &[u8]) -> Vec<u8> {
    let mut packer = GzEncoder::new(Vec::new(), Compression::default());
    // Writing into a Vec does not fail.
    let _ = packer.write_all(body);
    packer.finish().unwrap_or_default()
}

/// The receiver could not be reached, or did not answer. The address stays out of it: it may hold a secret.
pub(super) fn unreachable(error: reqwest::Error) -> Outcome {
    Outcome::Failed(format!("out of reach: {}", whole(&error.without_url())), None)
}

/// What `response` means for what was sent.
///
/// - 2xx: delivered.
/// - 408, 425, 429, 5xx: later; `Retry-After` (RFC 9110 §10.2.3, seconds) says when.
/// - 3xx, 401, 403, 404, 405, 407, 410: the address or the credential is wrong, and the alerts wait until it is right.
/// - Other 4xx, such as 400, 413 or 422: about the alerts themselves. Refused.
pub(super) async fn verdict(response: Response) -> Outcome {
    let status = response.status();
    if status.is_success() {
        return Outcome::Delivered;
    }
    let asked = retry_after(response.headers());
    let said = excerpt(response).await;
    let said = if said.is_empty() { said } else { format!(": {said}") };
    match status.as_u16() {
        408 | 425 | 429 | 500..=599 => Outcome::Failed(format!("answered {status}{said}"), asked),
        300..=399 => Outcome::Failed(format!("answered {status}; give the address that it points to"), None),
        401 | 403 | 407 => Outcome::Failed(format!("answered {status}; is the credential right?{said}"), asked),
        404 | 405 | 410 => Outcome::Failed(format!("answered {status}; is the address right?{said}"), asked),
        _ => Outcome::Refused(format!("answered {status}{said}")),
    }
}

/// Whether the receiver does not know us.
pub(super) fn is_unauthorized(response: &Response) -> bool {
    response.status() == StatusCode::UNAUTHORIZED
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

/// The beginning of the answer, fit to be shown.
pub(super) async fn excerpt(mut response: Response) -> String {
    let mut said = Vec::new();
    while let Ok(Some(bytes)) = response.chunk().await {
        said.extend_from_slice(&bytes);
        if said.len() >= SAID_LEN_MAX {
            break;
        }
    }
    let said = String::from_utf8_lossy(&said);
    said.chars()
        .map(|letter| if letter.is_control() { ' ' } else { letter })
        .take(SAID_LEN_MAX)
        .collect::<String>()
        .trim()
        .to_owned()
}
