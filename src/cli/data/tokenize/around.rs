//! The tokens around each document: what the tokenizer's own rule and the options say, and no token twice.

use super::Args;
use crate::data::pipeline::Mark;
use crate::data::tokenizer::Bos;
use crate::data::Tokenizer;
use crate::error::{Error, Exit, Result};

pub struct Around {
    pub front: Vec<Mark>,
    pub eos: Option<Mark>,
    /// What stands in front and who says so, for one line.
    pub says: String,
}

impl Around {
    /// Errors: a token that the tokenizer does not have ([`Exit::Data`]), or one that would stand twice between two
    /// documents ([`Exit::Usage`]).
    pub fn new(args: &Args, tokenizer: &Tokenizer) -> Result<Around> {
        let bos = match (args.no_bos, &args.bos) {
            (true, _) => Bos::Never,
            (false, Some(name)) => Bos::Token(special(tokenizer, "--bos", name)?),
            (false, None) => Bos::Own,
        };
        let front = tokenizer.front(bos)?;
        let eos = eos(args, tokenizer)?;
        if let (Some(first), Some(e)) = (front.ids.first(), &eos) {
            if *first == e.id {
                let fact = format!("token {first} would stand after each document and again before the next");
                return Err(Error::new(Exit::Usage, format!("{fact} ({})", front.says))
                    .hint("give another --bos or --eos, or one of --no-bos and --no-eos"));
            }
        }
        // Texts are looked through for the name of a token that was asked for; by the tokenizer's own rule its name in a text is
        // characters, as all names are.
        let mark = |&id: &u32| Mark { id, name: args.bos.clone() };
        Ok(Around { front: front.ids.iter().map(mark).collect(), eos, says: front.says })
    }
}

fn eos(args: &Args, tokenizer: &Tokenizer) -> Result<Option<Mark>> {
    match (&args.eos, args.no_eos, tokenizer.eos()) {
        (Some(name), ..) => Ok(Some(Mark { id: special(tokenizer, "--eos", name)?, name: Some(name.clone()) })),
        (None, true, _) => Ok(None),
        (None, false, Some(id)) => Ok(Some(Mark { id, name: None })),
        (None, false, None) => {
            Err(Error::new(Exit::Data, format!("tokenizer {} names no end-of-text token", args.tokenizer))
                .hint("name one with --eos, put a tokenizer_config.json with eos_token beside it, or pass --no-eos"))
        }
    }
}

fn special(tokenizer: &Tokenizer, option: &str, name: &str) -> Result<u32> {
    tokenizer.special(name).ok_or_else(|| {
        let fact = format!("{option} {name}: tokenizer {} has no special token of this name", tokenizer.spec());
        Error::new(Exit::Data, fact).hint("write it as the tokenizer's files do, in quotes")
    })
}
