//! The data in a Python pickle, without Python: nothing is ever called.
//!
//! A pickle is a program for a small stack machine. This one knows the instructions of protocols 0 to 5 that build data. What a
//! pickle asks to be *called* is looked up among the few constructors that checkpoints are made of (tensors, parameters, ordered
//! dictionaries); anything else becomes an [`Object::Opaque`] that holds nothing. Objects live in one list and name each other by
//! position, so that neither cycles nor deep nesting are a danger.

use std::collections::BTreeMap;

/// Position of an object in a [`Heap`].
pub(super) type Ref = usize;

/// What a pickle may build.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Object {
    None,
    Bool(bool),
    Int(i64),
    /// An integer beyond 64 bits, little endian.
    Long(Vec<u8>),
    Float(f64),
    Text(String),
    Bytes(Vec<u8>),
    List(Vec<Ref>),
    Tuple(Vec<Ref>),
    Dict(Vec<(Ref, Ref)>),
    /// A class or function by name, as in `torch FloatStorage`.
    Global(String, String),
    /// What a file keeps outside of the pickle, by the key under which it asks for it.
    Persistent(Ref),
    Tensor(Tensor),
    /// Something that is not data.
    Opaque,
}

/// A view of a storage.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tensor {
    /// A [`Object::Persistent`].
    pub(super) storage: Ref,
    /// In elements.
    pub(super) offset: usize,
    pub(super) size: Vec<usize>,
    pub(super) stride: Vec<usize>,
}

/// All objects of a pickle.
#[derive(Debug, Default)]
pub(super) struct Heap(Vec<Object>);

impl Heap {
    pub(super) fn get(&self, at: Ref) -> &Object {
        &self.0[at]
    }

    /// Every object.
    pub(super) fn refs(&self) -> impl Iterator<Item = Ref> {
        0..self.0.len()
    }

    fn add(&mut self, object: Object) -> Ref {
        self.0.push(object);
        self.0.len() - 1
    }

    /// The text of an object that is one.
    pub(super) fn text(&self, at: Ref) -> Option<&str> {
        match self.get(at) {
            Object::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The number of an object that is an integer, if it is not negative.
    pub(super) fn index(&self, at: Ref) -> Option<usize> {
        match self.get(at) {
            Object::Int(value) => usize::try_from(*value).ok(),
            _ => None,
        }
    }

    /// The elements of a list or tuple.
    pub(super) fn items(&self, at: Ref) -> Option<&[Ref]> {
        match self.get(at) {
            Object::List(items) | Object::Tuple(items) => Some(items),
            _ => None,
        }
    }
}

/// What is wrong with a pickle, and at which of its bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("byte {at} of the pickle: {what}")]
pub(super) struct Problem {
    at: usize,
    what: String,
}

type Result<T> = std::result::Result<T, Problem>;

/// Most objects of a pickle: checkpoints have some ten for each tensor.
const MOST_OBJECTS: usize = 1 << 22;

/// Reads one pickle from the beginning of `bytes`: its objects, which of them it is, and how many bytes it took.
pub(super) fn read(bytes: &[u8]) -> Result<(Heap, Ref, usize)> {
    let mut machine = Machine {
        bytes,
        at: 0,
        heap: Heap::default(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: BTreeMap::new(),
        copies: bytes.len(),
    };
    let root = machine.run()?;
    Ok((machine.heap, root, machine.at))
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    heap: Heap,
    stack: Vec<Ref>,
    /// Heights of the stack at each mark.
    marks: Vec<usize>,
    memo: BTreeMap<u64, Ref>,
    /// References that calls may still copy: a pickle cannot grow much by calling.
    copies: usize,
}

impl<'a> Machine<'a> {
    fn fail<T>(&self, what: impl Into<String>) -> Result<T> {
        Err(Problem { at: self.at, what: what.into() })
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        match self.bytes[self.at..].get(..count) {
            Some(bytes) => {
                self.at += count;
                Ok(bytes)
            }
            None => self.fail(format!("ends {count} bytes too early")),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn byte(&mut self) -> Result<usize> {
        Ok(usize::from(self.array::<1>()?[0]))
    }

    fn long(&mut self) -> Result<usize> {
        let value = u32::from_le_bytes(self.array()?);
        usize::try_from(value).or_else(|_| self.fail("a length beyond this machine"))
    }

    fn longer(&mut self) -> Result<usize> {
        let value = u64::from_le_bytes(self.array()?);
        usize::try_from(value).or_else(|_| self.fail("a length beyond this machine"))
    }

    /// Up to the end of the line, which is skipped.
    fn line(&mut self) -> Result<&'a str> {
        let rest = &self.bytes[self.at..];
        let Some(len) = rest.iter().position(|byte| *byte == b'\n') else {
            return self.fail("a line that does not end");
        };
        let line = &rest[..len];
        self.at += len + 1;
        std::str::from_utf8(line).or_else(|_| self.fail("a line that is not text"))
    }

    fn text(&mut self, len: usize) -> Result<Object> {
        let bytes = self.take(len)?;
        // Strings of Python 2 may be bytes in fact.
        Ok(match std::str::from_utf8(bytes) {
            Ok(text) => Object::Text(text.into()),
            Err(_) => Object::Bytes(bytes.into()),
        })
    }

    fn push(&mut self, object: Object) -> Result<()> {
        if self.heap.0.len() >= MOST_OBJECTS {
            return self.fail(format!("more than {MOST_OBJECTS} objects"));
        }
        let at = self.heap.add(object);
        self.stack.push(at);
        Ok(())
    }

    /// The top of the stack, not below the last mark.
    fn pop(&mut self) -> Result<Ref> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.pop() {
            Some(top) if self.stack.len() >= floor => Ok(top),
            _ => self.fail("takes from an empty stack"),
        }
    }

    fn top(&self) -> Result<Ref> {
        match self.stack.last() {
            Some(top) => Ok(*top),
            None => self.fail("looks at an empty stack"),
        }
    }

    /// What was pushed since the last mark.
    fn since_mark(&mut self) -> Result<Vec<Ref>> {
        match self.marks.pop() {
            Some(mark) if mark <= self.stack.len() => Ok(self.stack.split_off(mark)),
            _ => self.fail("asks for a mark that is not there"),
        }
    }

    fn pairs(&mut self) -> Result<Vec<(Ref, Ref)>> {
        let items = self.since_mark()?;
        if !items.len().is_multiple_of(2) {
            return self.fail("a key without a value");
        }
        Ok(items.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
    }

    fn put(&mut self, key: u64) -> Result<()> {
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: u64) -> Result<()> {
        match self.memo.get(&key) {
            Some(at) => {
                self.stack.push(*at);
                Ok(())
            }
            None => self.fail(format!("recalls {key}, which it did not store")),
        }
    }

    fn number<T: std::str::FromStr>(&mut self) -> Result<T> {
        let line = self.line()?;
        line.trim_end_matches('L').parse().or_else(|_| self.fail(format!("`{line}` is not a number")))
    }

    /// An integer of so many bytes, two's complement, little endian.
    fn integer(&mut self, len: usize) -> Result<Object> {
        let bytes = self.take(len)?;
        if len > 8 {
            return Ok(Object::Long(bytes.into()));
        }
        let negative = bytes.last().is_some_and(|byte| *byte >= 0x80);
        let mut wide = [if negative { 0xff } else { 0 }; 8];
        wide[..len].copy_from_slice(bytes);
        Ok(Object::Int(i64::from_le_bytes(wide)))
    }

    /// Runs until the end of the pickle.
    fn run(&mut self) -> Result<Ref> {
        loop {
            let instruction = self.array::<1>()?[0];
            match instruction {
                b'.' => return self.pop(),
                0x80 => {
                    let version = self.byte()?;
                    if version > 5 {
                        return self.fail(format!("protocol {version}; known are 0 to 5"));
                    }
                }
                0x95 => {
                    self.take(8)?;
                }
                b'(' => self.marks.push(self.stack.len()),
                b'0' => {
                    // Python lets it remove a mark too.
                    if self.marks.last() == Some(&self.stack.len()) {
                        self.marks.pop();
                    } else {
                        self.pop()?;
                    }
                }
                b'1' => {
                    self.since_mark()?;
                }
                b'2' => {
                    let top = self.top()?;
                    self.stack.push(top);
                }
                b'N' => self.push(Object::None)?,
                0x88 => self.push(Object::Bool(true))?,
                0x89 => self.push(Object::Bool(false))?,
                b'F' => {
                    let value = self.number()?;
                    self.push(Object::Float(value))?;
                }
                b'G' => {
                    let value = f64::from_be_bytes(self.array()?);
                    self.push(Object::Float(value))?;
                }
                b'I' => {
                    let line = self.line()?;
                    let object = match line {
                        "00" => Object::Bool(false),
                        "01" => Object::Bool(true),
                        _ => match line.parse() {
                            Ok(value) => Object::Int(value),
                            Err(_) => return self.fail(format!("`{line}` is not an integer")),
                        },
                    };
                    self.push(object)?;
                }
                b'L' => {
                    let value = self.number()?;
                    self.push(Object::Int(value))?;
                }
                b'J' => {
                    let value = i32::from_le_bytes(self.array()?);
                    self.push(Object::Int(value.into()))?;
                }
                b'K' => {
                    let value = self.array::<1>()?[0];
                    self.push(Object::Int(value.into()))?;
                }
                b'M' => {
                    let value = u16::from_le_bytes(self.array()?);
                    self.push(Object::Int(value.into()))?;
                }
                0x8a => {
                    let len = self.byte()?;
                    let object = self.integer(len)?;
                    self.push(object)?;
                }
                0x8b => {
                    let len = self.long()?;
                    let object = self.integer(len)?;
                    self.push(object)?;
                }
                b'S' => {
                    let line = self.line()?;
                    let text = line.trim_matches(|c| c == '\'' || c == '"').to_owned();
                    self.push(Object::Text(text))?;
                }
                b'V' => {
                    let text = self.line()?.to_owned();
                    self.push(Object::Text(text))?;
                }
                b'T' | b'X' | b'B' => {
                    let len = self.long()?;
                    let object = self.content(len, instruction == b'B')?;
                    self.push(object)?;
                }
                b'U' | 0x8c | b'C' => {
                    let len = self.byte()?;
                    let object = self.content(len, instruction == b'C')?;
                    self.push(object)?;
                }
                0x8d | 0x8e | 0x96 => {
                    let len = self.longer()?;
                    let object = self.content(len, instruction != 0x8d)?;
                    self.push(object)?;
                }
                b']' => self.push(Object::List(Vec::new()))?,
                b')' => self.push(Object::Tuple(Vec::new()))?,
                b'}' => self.push(Object::Dict(Vec::new()))?,
                // Sets hold nothing that a checkpoint needs.
                0x8f => self.push(Object::Opaque)?,
                0x90 => {
                    self.since_mark()?;
                    self.top()?;
                }
                0x91 => {
                    self.since_mark()?;
                    self.push(Object::Opaque)?;
                }
                b'l' => {
                    let items = self.since_mark()?;
                    self.push(Object::List(items))?;
                }
                b't' => {
                    let items = self.since_mark()?;
                    self.push(Object::Tuple(items))?;
                }
                0x85..=0x87 => {
                    let count = usize::from(instruction - 0x84);
                    let mut items = Vec::with_capacity(count);
                    for _ in 0..count {
                        items.push(self.pop()?);
                    }
                    items.reverse();
                    self.push(Object::Tuple(items))?;
                }
                b'd' => {
                    let pairs = self.pairs()?;
                    self.push(Object::Dict(pairs))?;
                }
                b'a' => {
                    let item = self.pop()?;
                    self.append(vec![item])?;
                }
                b'e' => {
                    let items = self.since_mark()?;
                    self.append(items)?;
                }
                b's' => {
                    let value = self.pop()?;
                    let key = self.pop()?;
                    self.set(vec![(key, value)])?;
                }
                b'u' => {
                    let pairs = self.pairs()?;
                    self.set(pairs)?;
                }
                b'p' | b'g' => {
                    let key = self.number()?;
                    if instruction == b'p' { self.put(key)? } else { self.recall(key)? }
                }
                b'q' | b'h' => {
                    let key = self.byte()? as u64;
                    if instruction == b'q' { self.put(key)? } else { self.recall(key)? }
                }
                b'r' | b'j' => {
                    let key = self.long()? as u64;
                    if instruction == b'r' { self.put(key)? } else { self.recall(key)? }
                }
                0x94 => self.put(self.memo.len() as u64)?,
                b'c' => {
                    let (module, name) = (self.line()?.to_owned(), self.line()?.to_owned());
                    self.push(Object::Global(module, name))?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    let names = self.heap.text(module).zip(self.heap.text(name));
                    let Some((module, name)) = names else { return self.fail("a name that is no text") };
                    let object = Object::Global(module.into(), name.into());
                    self.push(object)?;
                }
                b'R' | 0x81 => {
                    let (arguments, called) = (self.pop()?, self.pop()?);
                    let object = self.call(called, arguments)?;
                    self.push(object)?;
                }
                0x92 => {
                    let (_, _, _) = (self.pop()?, self.pop()?, self.pop()?);
                    self.push(Object::Opaque)?;
                }
                b'i' => {
                    self.line()?;
                    self.line()?;
                    self.since_mark()?;
                    self.push(Object::Opaque)?;
                }
                b'o' => {
                    self.since_mark()?;
                    self.push(Object::Opaque)?;
                }
                // The state of an object, which stays as it is.
                b'b' => {
                    self.pop()?;
                    self.top()?;
                }
                b'Q' => {
                    let key = self.pop()?;
                    self.push(Object::Persistent(key))?;
                }
                b'P' => {
                    let text = self.line()?.to_owned();
                    let key = self.heap.add(Object::Text(text));
                    self.push(Object::Persistent(key))?;
                }
                other => {
                    self.at -= 1;
                    return self.fail(format!("instruction {other:#04x} is unknown"));
                }
            }
        }
    }

    fn content(&mut self, len: usize, bytes: bool) -> Result<Object> {
        if bytes { Ok(Object::Bytes(self.take(len)?.into())) } else { self.text(len) }
    }

    fn append(&mut self, items: Vec<Ref>) -> Result<()> {
        let top = self.top()?;
        match &mut self.heap.0[top] {
            Object::List(list) => list.extend(items),
            Object::Opaque => {}
            _ => return self.fail("appends to what is no list"),
        }
        Ok(())
    }

    fn set(&mut self, pairs: Vec<(Ref, Ref)>) -> Result<()> {
        let top = self.top()?;
        match &mut self.heap.0[top] {
            Object::Dict(dict) => dict.extend(pairs),
            Object::Opaque => {}
            _ => return self.fail("sets a key of what is no dictionary"),
        }
        Ok(())
    }

    /// What a call of one of the known constructors gives.
    fn call(&mut self, called: Ref, arguments: Ref) -> Result<Object> {
        let Object::Global(module, name) = self.heap.get(called) else { return Ok(Object::Opaque) };
        let arguments = self.heap.items(arguments).unwrap_or_default();
        let copied: usize =
            arguments.iter().take(4).map(|at| self.heap.items(*at).map_or(1, <[Ref]>::len)).sum();
        match self.copies.checked_sub(copied) {
            Some(left) => self.copies = left,
            None => return self.fail("copies more than it holds"),
        }
        match (&**module, &**name) {
            ("collections", "OrderedDict") => match arguments {
                [] => Ok(Object::Dict(Vec::new())),
                // Protocol 0 and 1: a list of pairs.
                [pairs] => {
                    let pair = |at: &Ref| match self.heap.items(*at) {
                        Some(&[key, value]) => Some((key, value)),
                        _ => None,
                    };
                    let pairs = self.heap.items(*pairs).unwrap_or_default();
                    match pairs.iter().map(pair).collect() {
                        Some(pairs) => Ok(Object::Dict(pairs)),
                        None => self.fail("an OrderedDict of what are no pairs"),
                    }
                }
                _ => self.fail("an OrderedDict of several arguments"),
            },
            ("torch._utils", "_rebuild_tensor_v2" | "_rebuild_tensor") => self.tensor(arguments),
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => {
                match arguments.first().map(|data| self.heap.get(*data)) {
                    Some(tensor @ Object::Tensor(_)) => Ok(tensor.clone()),
                    _ => self.fail("a parameter without a tensor"),
                }
            }
            ("torch", "Size") => match arguments {
                [sizes] => Ok(Object::Tuple(self.heap.items(*sizes).unwrap_or_default().into())),
                _ => self.fail("a torch.Size of other than one argument"),
            },
            _ => Ok(Object::Opaque),
        }
    }

    fn tensor(&self, arguments: &[Ref]) -> Result<Object> {
        let &[storage, offset, size, stride, ..] = arguments else {
            return self.fail("a tensor of fewer than four arguments");
        };
        let numbers = |at: Ref| -> Option<Vec<usize>> {
            self.heap.items(at)?.iter().map(|item| self.heap.index(*item)).collect()
        };
        match (self.heap.get(storage), self.heap.index(offset), numbers(size), numbers(stride)) {
            (Object::Persistent(_), Some(offset), Some(size), Some(stride)) if size.len() == stride.len() => {
                Ok(Object::Tensor(Tensor { storage, offset, size, stride }))
            }
            _ => self.fail("a tensor whose storage, offset, size or stride is none"),
        }
    }
}
