//! The part of Python's pickle that `torch.save` uses for a dictionary of tensors, read without running any code.
//!
//! A pickle is a program for a stack machine. Only opcodes that build dictionaries, lists, tuples, numbers and strings are
//! understood, and only the few callables by which torch describes a tensor: anything else is refused by name. Source:
//! CPython's pickletools.py (opcodes), torch/serialization.py and torch/_utils.py (what torch puts in).

use crate::convert::hf::Dtype;
use std::collections::HashMap;
use std::rc::Rc;

/// Most values that a state dict may have; each is a few dozen bytes.
const MAX_VALUES: usize = 50_000_000;

/// A tensor as the pickle describes it; its numbers lie in a storage, an entry of the archive.
#[derive(Clone, Debug, PartialEq)]
pub struct PickledTensor {
    pub storage: Rc<Storage>,
    /// First element in the storage.
    pub offset: usize,
    pub shape: Vec<usize>,
    /// Elements between neighbours on each dim.
    pub strides: Vec<usize>,
}

#[derive(Debug, PartialEq)]
pub struct Storage {
    /// Name of the entry behind `data/`.
    pub key: String,
    /// Type, or torch's word for one that herd does not read.
    pub dtype: Result<Dtype, String>,
    /// Elements.
    pub len: usize,
}

#[derive(Clone, Debug)]
enum Value {
    Mark,
    Int(i64),
    Text(Rc<str>),
    Tuple(Rc<Vec<Value>>),
    /// By number, since the machine changes them after they were put on the stack.
    Dict(usize),
    List(usize),
    Callable(Rc<str>),
    Storage(Rc<Storage>),
    Tensor(Rc<PickledTensor>),
    /// None, truth values, floats: nothing that describes a tensor.
    Other,
}

#[derive(Default)]
struct Machine {
    stack: Vec<Value>,
    memo: HashMap<usize, Value>,
    dicts: Vec<Vec<(Value, Value)>>,
    lists: Vec<Vec<Value>>,
}

type Step<T> = Result<T, String>;

/// The tensors of a pickled dictionary, by key; other values in it are passed over.
pub fn tensors(bytes: &[u8]) -> Result<Vec<(String, PickledTensor)>, String> {
    let mut machine = Machine::default();
    let top = machine.run(&mut Input(bytes))?;
    let Value::Dict(top) = top else { return Err("it holds no dictionary of tensors".into()) };
    let named = machine.dicts[top].iter().filter_map(|(key, value)| match (key, value) {
        (Value::Text(key), Value::Tensor(t)) => Some((key.to_string(), (**t).clone())),
        _ => None,
    });
    Ok(named.collect())
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, n: usize) -> Step<&'a [u8]> {
        if n > self.0.len() {
            return Err("the pickle is cut off".into());
        }
        let (head, rest) = self.0.split_at(n);
        self.0 = rest;
        Ok(head)
    }

    /// Little-endian number of `n` bytes.
    fn number(&mut self, n: usize) -> Step<u64> {
        Ok(self.take(n)?.iter().rev().fold(0, |acc, &b| acc << 8 | u64::from(b)))
    }

    fn text(&mut self, n: usize) -> Step<Value> {
        let text = std::str::from_utf8(self.take(n)?).map_err(|_| "a string in the pickle is no UTF-8")?;
        Ok(Value::Text(text.into()))
    }

    fn line(&mut self) -> Step<&'a str> {
        let end = self.0.iter().position(|&b| b == b'\n').ok_or("the pickle is cut off")?;
        let line = self.take(end + 1)?;
        std::str::from_utf8(&line[..end]).map_err(|_| "a name in the pickle is no UTF-8".into())
    }
}

impl Machine {
    fn run(&mut self, input: &mut Input) -> Step<Value> {
        loop {
            if self.stack.len() + self.memo.len() > MAX_VALUES {
                return Err("the pickle holds too many values".into());
            }
            let op = input.take(1)?[0];
            match op {
                b'.' => return self.pop(),
                0x80 => {
                    input.take(1)?; // protocol
                }
                0x95 => {
                    input.take(8)?; // frame
                }
                b'(' => self.stack.push(Value::Mark),
                b'}' => self.new_dict(),
                b']' => self.new_list(),
                b')' => self.stack.push(Value::Tuple(Rc::new(Vec::new()))),
                b't' => self.tuple_to_mark()?,
                0x85..=0x87 => self.tuple(op as usize - 0x84)?,
                b'N' | 0x88 | 0x89 => self.stack.push(Value::Other),
                b'G' => {
                    input.take(8)?;
                    self.stack.push(Value::Other);
                }
                b'J' => {
                    let n = input.number(4)? as u32 as i32;
                    self.stack.push(Value::Int(n.into()));
                }
                b'K' => self.push_number(input.number(1)?),
                b'M' => self.push_number(input.number(2)?),
                0x8a => self.long(input)?,
                b'X' => {
                    let n = input.number(4)? as usize;
                    self.push(input.text(n)?);
                }
                0x8c => {
                    let n = input.number(1)? as usize;
                    self.push(input.text(n)?);
                }
                b'q' => self.memorise(input.number(1)? as usize)?,
                b'r' => self.memorise(input.number(4)? as usize)?,
                0x94 => self.memorise(self.memo.len())?,
                b'h' => self.recall(input.number(1)? as usize)?,
                b'j' => self.recall(input.number(4)? as usize)?,
                b'c' => {
                    let (module, name) = (input.line()?, input.line()?);
                    self.callable(module, name)?;
                }
                0x93 => self.stack_global()?,
                b'Q' => self.persistent()?,
                b'R' => self.reduce()?,
                b'b' => self.build()?,
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.set_items(vec![key, value])?;
                }
                b'u' => {
                    let items = self.take_to_mark()?;
                    self.set_items(items)?;
                }
                b'a' => {
                    let item = self.pop()?;
                    self.append(vec![item])?;
                }
                b'e' => {
                    let items = self.take_to_mark()?;
                    self.append(items)?;
                }
                b'0' => drop(self.pop()?),
                op => return Err(format!("the pickle uses opcode {op:#04x}, which no dictionary of tensors needs")),
            }
        }
    }

    fn push(&mut self, value: Value) {
        self.stack.push(value);
    }

    fn push_number(&mut self, n: u64) {
        self.stack.push(Value::Int(n as i64));
    }

    fn pop(&mut self) -> Step<Value> {
        self.stack.pop().ok_or_else(|| "the pickle takes more than it put".into())
    }

    fn take_to_mark(&mut self) -> Step<Vec<Value>> {
        let at = self.stack.iter().rposition(|v| matches!(v, Value::Mark));
        let at = at.ok_or("the pickle has no mark where it needs one")?;
        let items = self.stack.split_off(at + 1);
        self.stack.pop();
        Ok(items)
    }

    fn new_dict(&mut self) {
        self.dicts.push(Vec::new());
        self.stack.push(Value::Dict(self.dicts.len() - 1));
    }

    fn new_list(&mut self) {
        self.lists.push(Vec::new());
        self.stack.push(Value::List(self.lists.len() - 1));
    }

    fn tuple_to_mark(&mut self) -> Step<()> {
        let items = self.take_to_mark()?;
        self.stack.push(Value::Tuple(Rc::new(items)));
        Ok(())
    }

    fn tuple(&mut self, n: usize) -> Step<()> {
        let at = self.stack.len().checked_sub(n).ok_or("the pickle takes more than it put")?;
        let items = self.stack.split_off(at);
        self.stack.push(Value::Tuple(Rc::new(items)));
        Ok(())
    }

    fn long(&mut self, input: &mut Input) -> Step<()> {
        let n = input.number(1)? as usize;
        let bytes = input.take(n)?;
        if n > 8 {
            return Err(format!("the pickle holds a number of {n} bytes"));
        }
        let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
        let mut all = [if negative { 0xff } else { 0 }; 8];
        all[..n].copy_from_slice(bytes);
        self.stack.push(Value::Int(i64::from_le_bytes(all)));
        Ok(())
    }

    fn memorise(&mut self, at: usize) -> Step<()> {
        let top = self.stack.last().cloned().ok_or("the pickle remembers nothing")?;
        self.memo.insert(at, top);
        Ok(())
    }

    fn recall(&mut self, at: usize) -> Step<()> {
        let value = self.memo.get(&at).cloned().ok_or("the pickle recalls what it never remembered")?;
        self.stack.push(value);
        Ok(())
    }

    fn callable(&mut self, module: &str, name: &str) -> Step<()> {
        let full = format!("{module}.{name}");
        let known = matches!(
            full.as_str(),
            "collections.OrderedDict" | "torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_parameter"
        ) || (module == "torch" && name.ends_with("Storage"));
        if !known {
            return Err(format!("the pickle calls {full}, which no dictionary of tensors needs"));
        }
        self.stack.push(Value::Callable(full.into()));
        Ok(())
    }

    fn stack_global(&mut self) -> Step<()> {
        match (self.pop()?, self.pop()?) {
            (Value::Text(name), Value::Text(module)) => self.callable(&module, &name),
            _ => Err("the pickle names a callable by something that is no string".into()),
        }
    }

    /// `('storage', torch.XStorage, key, location, elements)` becomes a storage.
    fn persistent(&mut self) -> Step<()> {
        let Value::Tuple(id) = self.pop()? else { return Err("the pickle refers to a storage by no tuple".into()) };
        match &id[..] {
            [Value::Text(kind), Value::Callable(class), Value::Text(key), _, Value::Int(len)]
                if &**kind == "storage" =>
            {
                let dtype = match &**class {
                    "torch.FloatStorage" => Ok(Dtype::Fp32),
                    "torch.HalfStorage" => Ok(Dtype::Fp16),
                    "torch.BFloat16Storage" => Ok(Dtype::Bf16),
                    other => Err(other.to_string()),
                };
                let len = usize::try_from(*len).map_err(|_| "a storage has a negative length")?;
                self.push(Value::Storage(Rc::new(Storage { key: key.to_string(), dtype, len })));
                Ok(())
            }
            _ => Err("the pickle refers to something that is no storage".into()),
        }
    }

    fn reduce(&mut self) -> Step<()> {
        let (arguments, callable) = (self.pop()?, self.pop()?);
        let (Value::Tuple(a), Value::Callable(name)) = (arguments, callable) else {
            return Err("the pickle calls something that cannot be called".into());
        };
        match (&*name, &a[..]) {
            ("collections.OrderedDict", []) => self.new_dict(),
            ("torch._utils._rebuild_parameter", [Value::Tensor(t), ..]) => self.push(Value::Tensor(t.clone())),
            ("torch._utils._rebuild_tensor_v2", [Value::Storage(storage), Value::Int(offset), shape, strides, ..]) => {
                let offset = usize::try_from(*offset).map_err(|_| "a tensor has a negative offset")?;
                let (shape, strides) = (sizes(shape)?, sizes(strides)?);
                let tensor = PickledTensor { storage: storage.clone(), offset, shape, strides };
                tensor.check()?;
                self.push(Value::Tensor(Rc::new(tensor)));
            }
            (name, _) => return Err(format!("the pickle calls {name} with arguments that it does not take")),
        }
        Ok(())
    }

    /// `_metadata` of a state dict: set on the dictionary, of no use here.
    fn build(&mut self) -> Step<()> {
        self.pop()?;
        match self.stack.last() {
            Some(Value::Dict(_)) => Ok(()),
            _ => Err("the pickle sets attributes of something that is no dictionary".into()),
        }
    }

    fn set_items(&mut self, items: Vec<Value>) -> Step<()> {
        let Some(Value::Dict(at)) = self.stack.last() else {
            return Err("the pickle puts items into something that is no dictionary".into());
        };
        let dict = &mut self.dicts[*at];
        let mut items = items.into_iter();
        while let (Some(key), value) = (items.next(), items.next()) {
            dict.push((key, value.ok_or("the pickle has a key without a value")?));
        }
        Ok(())
    }

    fn append(&mut self, items: Vec<Value>) -> Step<()> {
        let Some(Value::List(at)) = self.stack.last() else {
            return Err("the pickle appends to something that is no list".into());
        };
        self.lists[*at].extend(items);
        Ok(())
    }
}

fn sizes(value: &Value) -> Step<Vec<usize>> {
    let Value::Tuple(items) = value else { return Err("a tensor's shape is no tuple".into()) };
    let one = |v: &Value| match v {
        Value::Int(n) => usize::try_from(*n).map_err(|_| "a tensor has a negative size".to_string()),
        _ => Err("a tensor's size is no number".into()),
    };
    items.iter().map(one).collect()
}

impl PickledTensor {
    /// Everything that it names lies in its storage, so that reading it needs no further checks.
    fn check(&self) -> Step<()> {
        if self.shape.len() != self.strides.len() {
            return Err(format!("a tensor has shape {:?} and strides {:?}", self.shape, self.strides));
        }
        if self.shape.contains(&0) {
            return Ok(());
        }
        let last = self
            .shape
            .iter()
            .zip(&self.strides)
            .try_fold(self.offset, |at, (n, s)| at.checked_add((n - 1).checked_mul(*s)?));
        match last {
            Some(last) if last < self.storage.len => Ok(()),
            _ => Err(format!(
                "a tensor of shape {:?}, strides {:?}, offset {} passes its storage of {}",
                self.shape, self.strides, self.offset, self.storage.len
            )),
        }
    }
}
