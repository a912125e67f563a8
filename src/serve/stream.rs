//! Tokens to text as they come. A token need not be whole characters, and how it reads can depend on its neighbours, so a
//! short window is decoded again with each token and only what can no longer change is let out.

/// Decoding state of one text.
pub struct TextStream<D> {
    decode: D,
    tokens: Vec<u32>,
    /// Start of the window.
    window: usize,
    /// Tokens whose text is out.
    out: usize,
}

impl<D: Fn(&[u32]) -> String> TextStream<D> {
    /// `decode` turns tokens into text; what is not a character yet ends in U+FFFD.
    pub fn new(decode: D) -> TextStream<D> {
        TextStream { decode, tokens: vec![], window: 0, out: 0 }
    }

    /// Takes one token; returns the text that is now certain, often none.
    pub fn push(&mut self, token: u32) -> String {
        self.tokens.push(token);
        let (before, now) = self.texts();
        if now.ends_with('\u{FFFD}') || now.len() <= before {
            return String::new();
        }
        self.window = self.out;
        self.out = self.tokens.len();
        now[before..].to_string()
    }

    /// What is left at the end, broken characters included.
    pub fn finish(self) -> String {
        let (before, now) = self.texts();
        now.get(before..).unwrap_or_default().to_string()
    }

    /// Length of the window's text that is out, and the window's whole text.
    fn texts(&self) -> (usize, String) {
        let before = (self.decode)(&self.tokens[self.window..self.out]);
        let now = (self.decode)(&self.tokens[self.window..]);
        (if now.is_char_boundary(before.len()) { before.len() } else { now.len() }, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(tokens: &[u32]) -> String {
        let bytes: Vec<u8> = tokens.iter().map(|&t| t as u8).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    #[test]
    fn text_comes_out_whole_and_never_in_broken_pieces() {
        let text = "añ €uro 𝄞 end";
        let mut stream = TextStream::new(bytes);
        let mut pieces = vec![];
        for b in text.bytes() {
            pieces.push(stream.push(b as u32));
        }
        assert!(pieces.iter().all(|p| !p.contains('\u{FFFD}')));
        assert!(pieces.iter().filter(|p| p.is_empty()).count() == text.len() - text.chars().count());
        assert_eq!(pieces.concat() + &stream.finish(), text);
    }

    #[test]
    fn the_end_gives_what_is_left() {
        let mut stream = TextStream::new(bytes);
        assert_eq!(stream.push(b'x' as u32), "x");
        assert_eq!(stream.push(0xE2), "");
        assert_eq!(stream.finish(), "\u{FFFD}");
    }
}
