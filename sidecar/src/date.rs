//! `Date` for responses that come without (RFC 9110 §6.6.1), written once a second.

use std::cell::RefCell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::header::{DATE, HeaderMap, HeaderValue};

thread_local! {
    static WRITTEN: RefCell<(u64, HeaderValue)> = const { RefCell::new((0, HeaderValue::from_static(""))) };
}

/// Adds the time of now, where the application gave none.
pub fn add(headers: &mut HeaderMap) {
    if headers.contains_key(DATE) {
        return;
    }
    let second = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let date = WRITTEN.with_borrow_mut(|written| {
        if written.0 != second {
            let text = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(second));
            *written = (second, HeaderValue::from_str(&text).expect("a date is visible ASCII"));
        }
        written.1.clone()
    });
    headers.insert(DATE, date);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_added_once_and_an_applications_own_stays() {
        let mut headers = HeaderMap::new();
        add(&mut headers);
        let date = httpdate::parse_http_date(headers[DATE].to_str().unwrap()).unwrap();
        assert!(date.elapsed().unwrap() < Duration::from_secs(60));
        headers.insert(DATE, HeaderValue::from_static("then"));
        add(&mut headers);
        assert_eq!(headers[DATE], "then");
    }
}
