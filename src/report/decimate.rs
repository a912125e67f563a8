//! Many steps as few buckets, in one pass and in bounded memory. A bucket covers `width` steps and keeps of each column mean,
//! least and most, so that a spike of one step in a million is still in the picture. The width doubles when the buckets would be
//! too many: nobody has to know the length of a run beforehand.

use serde_json::{json, Map, Number, Value};

/// The most buckets; at least half of them are in use once a run is longer.
pub const BUCKETS: usize = 1600;

/// One column in one bucket.
#[derive(Clone, Copy, Debug)]
struct Cell {
    count: u64,
    sum: f64,
    min: f64,
    max: f64,
}

const EMPTY: Cell = Cell { count: 0, sum: 0.0, min: f64::INFINITY, max: f64::NEG_INFINITY };

impl Cell {
    fn of(x: f64) -> Cell {
        Cell { count: 1, sum: x, min: x, max: x }
    }

    fn join(&mut self, other: &Cell) {
        self.count += other.count;
        self.sum += other.sum;
        self.min = self.min.min(other.min);
        self.max = self.max.max(other.max);
    }
}

#[derive(Clone, Debug)]
struct Bucket {
    /// Last step in it.
    step: u64,
    cells: Vec<Cell>,
}

/// Steps of a run, thinned out.
#[derive(Clone, Debug)]
pub struct Decimator {
    names: Vec<&'static str>,
    most: usize,
    width: u64,
    steps: u64,
    buckets: Vec<Bucket>,
}

impl Decimator {
    /// For columns of these names, and at most `most` buckets (at least 2).
    pub fn new(names: &[&'static str], most: usize) -> Decimator {
        Decimator { names: names.to_vec(), most: most.max(2), width: 1, steps: 0, buckets: Vec::new() }
    }

    /// Takes a step in, one value a column; what is absent or not finite leaves no trace. Steps come in rising order.
    pub fn add(&mut self, step: u64, values: &[Option<f64>]) {
        let cell = |i: usize| values.get(i).copied().flatten().filter(|x| x.is_finite()).map_or(EMPTY, Cell::of);
        let cells: Vec<Cell> = (0..self.names.len()).map(cell).collect();
        self.steps += 1;
        self.put(Bucket { step, cells });
        while self.buckets.len() > self.most {
            self.width *= 2;
            for bucket in std::mem::take(&mut self.buckets) {
                self.put(bucket);
            }
        }
    }

    fn put(&mut self, bucket: Bucket) {
        // step 1 is the first of its bucket
        let place = |step: u64| step.saturating_sub(1) / self.width;
        match self.buckets.last_mut().filter(|b| place(b.step) == place(bucket.step)) {
            Some(last) => {
                last.step = bucket.step;
                last.cells.iter_mut().zip(&bucket.cells).for_each(|(a, b)| a.join(b));
            }
            None => self.buckets.push(bucket),
        }
    }

    /// Means of a column, at most `most` of them, in order; buckets without a value are left out.
    pub fn means(&self, name: &str) -> Vec<f64> {
        let Some(i) = self.names.iter().position(|n| *n == name) else { return Vec::new() };
        let cells = self.buckets.iter().map(|b| &b.cells[i]).filter(|c| c.count > 0);
        cells.map(|c| c.sum / c.count as f64).collect()
    }

    /// `{width, steps, step: […], columns: {name: {mean: […], min: […], max: […]}}}`: columns without a value are left out, `min`
    /// and `max` too where they equal the mean everywhere. Numbers have six significant digits.
    pub fn json(&self) -> Value {
        let steps: Vec<u64> = self.buckets.iter().map(|b| b.step).collect();
        let mut columns = Map::new();
        for (i, name) in self.names.iter().enumerate() {
            let cells = || self.buckets.iter().map(|b| &b.cells[i]);
            if cells().all(|c| c.count == 0) {
                continue;
            }
            let list = |f: &dyn Fn(&Cell) -> f64| -> Vec<Value> {
                cells().map(|c| if c.count == 0 { Value::Null } else { short(f(c)) }).collect()
            };
            let mut column = json!({ "mean": list(&|c| c.sum / c.count as f64) });
            if cells().any(|c| c.min < c.max) {
                column["min"] = list(&|c| c.min).into();
                column["max"] = list(&|c| c.max).into();
            }
            columns.insert(name.to_string(), column);
        }
        json!({ "width": self.width, "steps": self.steps, "step": steps, "columns": columns })
    }
}

/// Six significant digits: more than a screen has.
fn short(x: f64) -> Value {
    let rounded: f64 = format!("{x:.5e}").parse().unwrap_or(x);
    match rounded {
        x if x.fract() == 0.0 && x.abs() < 1e15 => Value::from(x as i64),
        x => Number::from_f64(x).map_or(Value::Null, Value::Number),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_runs_are_exact() {
        let mut d = Decimator::new(&["a", "b"], 100);
        (1..=100).for_each(|s| d.add(s, &[Some(s as f64 / 3.0), (s % 10 == 0).then_some(1.5)]));
        let v = d.json();
        assert_eq!((v["width"].as_u64(), v["steps"].as_u64()), (Some(1), Some(100)));
        assert_eq!(v["columns"]["a"]["mean"][0], 0.333333);
        assert!(v["columns"]["a"].get("min").is_none(), "one step a bucket");
        assert_eq!((&v["columns"]["b"]["mean"][8], &v["columns"]["b"]["mean"][9]), (&Value::Null, &json!(1.5)));
    }

    #[test]
    fn a_spike_of_one_step_in_a_million_survives_in_few_buckets() {
        let mut d = Decimator::new(&["loss"], BUCKETS);
        for s in 1..=1_000_000u64 {
            d.add(s, &[Some(if s == 777_777 { 99.0 } else { 2.0 })]);
            assert!(d.buckets.len() <= BUCKETS);
        }
        let v = d.json();
        let list = |name: &str| -> Vec<f64> {
            v["columns"]["loss"][name].as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
        };
        assert!(list("mean").len() >= BUCKETS / 2 - 1, "{}", list("mean").len());
        let (max, steps) = (list("max"), v["step"].as_array().unwrap());
        let at = max.iter().position(|&x| x == 99.0).unwrap();
        let width = v["width"].as_u64().unwrap();
        assert!((777_777..777_777 + width).contains(&steps[at].as_u64().unwrap()));
        assert_eq!(max.iter().filter(|&&x| x == 99.0).count(), 1);
        // nothing is lost: the sums of the buckets are the sum of all steps
        let sum: f64 = d.buckets.iter().map(|b| b.cells[0].sum).sum();
        assert_eq!(sum, 2.0 * 999_999.0 + 99.0);
        assert_eq!(steps.last().unwrap(), 1_000_000);
    }

    #[test]
    fn gaps_numbers_that_are_not_finite_and_huge_steps() {
        let mut d = Decimator::new(&["x"], 4);
        for s in [1, 2, 3, 1 << 40, u64::MAX] {
            d.add(s, &[Some(if s == 2 { f64::NAN } else { 1.0 })]);
        }
        let v = d.json();
        assert_eq!(v["steps"], 5);
        assert!(v["step"].as_array().unwrap().len() <= 4);
        assert_eq!(v["columns"]["x"]["mean"][0], 1);
        let none = Decimator::new(&["x"], 4).json();
        assert_eq!(none["columns"], json!({}));
    }
}
