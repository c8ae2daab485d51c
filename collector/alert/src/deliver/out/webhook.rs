//! HTTP POST to an address of the operator's choice.

use reqwest::Client;
use ring::hmac;
use spanwatch_common::time::Timestamp;

use super::{BODY_LEN_MAX, Sent, http, pack, secret};
use crate::Alert;
use crate::deliver::courier::Outcome;
use crate::deliver::settings::{Body, OutputSettings};

pub(in crate::deliver) struct Webhook {
    settings: OutputSettings,
    client: Option<Client>,
}

impl Webhook {
    pub(super) const fn new(settings: OutputSettings) -> Self {
        Self { settings, client: None }
    }

    pub(super) async fn send(&mut self, alerts: &[Alert], key: &str, now: Timestamp) -> Sent {
        let alerts = if self.settings.body == Body::Object { alerts.get(..1).unwrap_or_default() } else { alerts };
        let (lines, shortened) = pack(alerts, &self.settings, BODY_LEN_MAX);
        let tried = lines.len();
        let (body, content_type) = match self.settings.body {
            // Findings may come with evidence, a line each.
            Body::Object => (lines.join(""), "application/json"),
            Body::Array => (format!("[{}]", lines.join(",").replace('\n', ",")), "application/json"),
            Body::Ndjson => (lines.join("\n") + "\n", "application/x-ndjson"),
        };
        // A retry of what did not get through as a whole may begin alike and end elsewhere.
        let key = format!("{key}-{tried}");
        let outcome = match self.post(body.into_bytes(), content_type, &key, now).await {
            Ok(outcome) | Err(outcome) => outcome,
        };
        Sent { tried, shortened, outcome }
    }

    async fn post(&mut self, body: Vec<u8>, content_type: &str, key: &str, now: Timestamp) -> Result<Outcome, Outcome> {
        let settings = &self.settings;
        let client = match &self.client {
            Some(client) => client,
            None => self.client.insert(http::client(settings)?),
        };
        let mut request = client.post(&settings.url).header("Content-Type", content_type).header("Idempotency-Key", key);
        if !settings.token_file.as_os_str().is_empty() {
            request = request.bearer_auth(secret(&settings.token_file)?);
        }
        let body = if settings.gzip { http::gzip(&body) } else { body };
        if settings.gzip {
            request = request.header("Content-Encoding", "gzip");
        }
        if !settings.hmac_key_file.as_os_str().is_empty() {
            let signature = signature(secret(&settings.hmac_key_file)?.as_bytes(), now, &body);
            request = request.header("Spanwatch-Signature", signature);
        }
        let response = request.body(body).send().await.map_err(http::unreachable)?;
        Ok(http::verdict(response).await)
    }
}

/// `t=SECONDS,v1=HEX`: HMAC-SHA256 (RFC 2104) over the seconds since 1970, a dot and the body as sent. The time is under the signature, so
/// that a receiver can turn away what somebody recorded and sends again.
fn signature(key: &[u8], now: Timestamp, body: &[u8]) -> String {
    let seconds = now.as_nanos().div_euclid(1_000_000_000);
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    context.update(format!("{seconds}.").as_bytes());
    context.update(body);
    let digits: String = context.sign().as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("t={seconds},v1={digits}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_what_openssl_says() {
        // printf '1795255200.{}' | openssl dgst -sha256 -hmac secret
        let signature = signature(b"secret", Timestamp::from_secs(1_795_255_200), b"{}");
        assert_eq!(signature, "t=1795255200,v1=c8c98afec5098ce8d139a89e27b4c261a84973924ace8ef65c5fa852d9eece6a");
    }
}
