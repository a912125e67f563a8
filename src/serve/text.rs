//! The text of a sequence as it comes, up to the first of its stop strings.

use crate::data::Tokenizer;
use crate::serve::TextStream;

/// Text so far.
pub struct StoppedText<D> {
    stream: Option<TextStream<D>>,
    text: String,
    stops: Vec<String>,
    /// A stop string has come: the text is final.
    stopped: bool,
}

/// The text of tokens of a tokenizer.
pub type TokenizerText<'t> = StoppedText<Box<dyn Fn(&[u32]) -> String + Send + 't>>;

impl<'t> TokenizerText<'t> {
    /// No text yet; it will end before the first of `stops` that comes. Empty stop strings stop nothing.
    pub fn of(tokenizer: &'t Tokenizer, stops: &[String]) -> TokenizerText<'t> {
        StoppedText::new(Box::new(|ids: &[u32]| tokenizer.decode(ids)), stops)
    }
}

impl<D: Fn(&[u32]) -> String> StoppedText<D> {
    /// `decode` turns tokens into text. Empty stop strings stop nothing.
    pub fn new(decode: D, stops: &[String]) -> StoppedText<D> {
        let stops = stops.iter().filter(|s| !s.is_empty()).cloned().collect();
        StoppedText { stream: Some(TextStream::new(decode)), text: String::new(), stops, stopped: false }
    }

    /// Takes a token; whether a stop string has come.
    pub fn push(&mut self, token: u32) -> bool {
        if let Some(piece) = self.stream.as_mut().map(|s| s.push(token)) {
            self.add(&piece);
        }
        self.stopped
    }

    /// Characters of text that are certain.
    pub fn characters(&self) -> usize {
        self.text.chars().count()
    }

    /// The text that no stop string can still take back.
    pub fn certain(&self) -> &str {
        if self.stopped {
            return &self.text;
        }
        let begins = |from: usize| {
            self.text.is_char_boundary(from) && self.stops.iter().any(|s| s.starts_with(&self.text[from..]))
        };
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let from = self.text.len().saturating_sub(longest);
        &self.text[..(from..self.text.len()).find(|&at| begins(at)).unwrap_or(self.text.len())]
    }

    /// The whole text, and whether a stop string ended it.
    pub fn finish(mut self) -> (String, bool) {
        if let (Some(stream), false) = (self.stream.take(), self.stopped) {
            self.add(&stream.finish());
        }
        (self.text, self.stopped)
    }

    fn add(&mut self, piece: &str) {
        if self.stopped || piece.is_empty() {
            return;
        }
        // A stop string may have begun in what was there.
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let mut from = self.text.len().saturating_sub(longest);
        while !self.text.is_char_boundary(from) {
            from -= 1;
        }
        self.text += piece;
        if let Some(at) = self.stops.iter().filter_map(|s| self.text[from..].find(s)).min() {
            self.text.truncate(from + at);
            self.stopped = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(tokens: &[u32]) -> String {
        String::from_utf8_lossy(&tokens.iter().map(|&t| t as u8).collect::<Vec<u8>>()).into_owned()
    }

    fn run(text: &str, stops: &[&str]) -> (String, bool, usize) {
        let stops: Vec<String> = stops.iter().map(|s| s.to_string()).collect();
        let mut t = StoppedText::new(bytes, &stops);
        let read = text.bytes().position(|b| t.push(b as u32)).map_or(text.len(), |at| at + 1);
        let (text, stopped) = t.finish();
        (text, stopped, read)
    }

    #[test]
    fn a_text_ends_before_the_first_stop_string() {
        assert_eq!(run("one\n\ntwo", &["\n\n", "tw"]), ("one".into(), true, 5));
        assert_eq!(run("añ€o€€", &["€€", "x"]), ("añ€o".into(), true, "añ€o€€".len()));
        assert_eq!(run("abab", &[""]), ("abab".into(), false, 4));
        assert_eq!(run("aab", &["ab", "aab"]), ("".into(), true, 3));
    }

    #[test]
    fn what_may_begin_a_stop_string_is_held_back() {
        let mut t = StoppedText::new(bytes, &["abc".into(), "€€".into()]);
        let mut certain = |piece: &str| {
            for b in piece.bytes() {
                t.push(b as u32);
            }
            t.certain().to_string()
        };
        assert_eq!(certain("xab"), "x");
        assert_eq!(certain("d€"), "xabd");
        assert_eq!(certain("ab"), "xabd€");
        assert_eq!(certain("c"), "xabd€");
    }

    #[test]
    fn what_is_broken_at_the_end_is_shown_and_searched() {
        let mut t = StoppedText::new(bytes, &["\u{FFFD}".into()]);
        assert!(!t.push(b'x' as u32) && !t.push(0xE2));
        assert_eq!(t.finish(), ("x".into(), true));
    }
}
