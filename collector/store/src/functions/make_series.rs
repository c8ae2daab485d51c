//! KQL's `make-series` as an aggregate.

use std::sync::Arc;

use deltalake::arrow::array::{Array, ArrayRef, AsArray};
use deltalake::arrow::compute::cast;
use deltalake::arrow::datatypes::{DataType, Field, FieldRef, Float64Type, Int64Type, IntervalUnit, TimeUnit};
use deltalake::datafusion::common::Result;
use deltalake::datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use deltalake::datafusion::logical_expr::utils::format_state_name;
use deltalake::datafusion::logical_expr::{Accumulator, AggregateUDF, AggregateUDFImpl, Signature, Volatility};
use deltalake::datafusion::scalar::ScalarValue;
use spanwatch_kql::make_series::{Aggregate, Bins, Building};

use super::aggregates::{constant, for_each_value, spoilt};
use super::kql::{nanos, refused};
use super::series::list_type;

const NAME: &str = "make_series";
const USAGE: &str = "call it as make_series(value, time, from, to, step, 'sum', default), with 'count', 'avg', 'min', 'max' or \
                     'dcount' for 'sum'; the last two may be left out";

/// The aggregate.
pub(crate) fn aggregate() -> AggregateUDF {
    AggregateUDF::new_from_impl(MakeSeries { signature: Signature::variadic_any(Volatility::Immutable) })
}

/// `make_series(value, time, from, to, step [, aggregate [, default]])`: a list with one number per step, beginning at `from` and
/// ending before `to`. The aggregate is `sum` unless given, the default of a step without values 0.
///
/// Times and steps are timestamps and an interval, or whole numbers all of them. Kusto's statement
/// `make-series sum(x) default=0 on t from a to b step s by g` is `SELECT g, make_series(x, t, a, b, s) … GROUP BY g`.
#[derive(Debug, PartialEq, Eq, Hash)]
struct MakeSeries {
    signature: Signature,
}

impl AggregateUDFImpl for MakeSeries {
    fn name(&self) -> &str {
        NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        let (time, step) = match types {
            [_, time, _, _, step] => (time, step),
            [_, time, _, _, step, word] if word.is_string() => (time, step),
            [_, time, _, _, step, word, default] if word.is_string() && default.is_numeric() => (time, step),
            _ => return Err(refused(NAME, USAGE)),
        };
        match (time, step) {
            (DataType::Timestamp(..) | DataType::Date32 | DataType::Date64, DataType::Interval(_) | DataType::Duration(_)) => {}
            (time, step) if time.is_integer() && step.is_integer() => {}
            _ => return Err(refused(NAME, "the time needs a step of the same kind; for example INTERVAL '1 hour'")),
        }
        Ok(list_type(DataType::Float64))
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        Ok(vec![Arc::new(Field::new(format_state_name(args.name, "bins"), DataType::Binary, true))])
    }

    fn accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        if args.is_distinct {
            return Err(refused(NAME, "does not take DISTINCT; use 'dcount'"));
        }
        let [_, _, from, to, step, more @ ..] = args.exprs else { return Err(refused(NAME, USAGE)) };
        let from = position(&constant(NAME, "the beginning", from)?)?;
        let to = position(&constant(NAME, "the end", to)?)?;
        let step = length(&constant(NAME, "the step", step)?)?;
        let bins = Bins::new(from, to, step).map_err(|sentence| refused(NAME, &sentence))?;
        let aggregate = match more.first() {
            None => Aggregate::Sum,
            Some(word) => match constant(NAME, "the aggregate", word)?.cast_to(&DataType::Utf8)? {
                ScalarValue::Utf8(Some(word)) => word.parse().map_err(|sentence: String| refused(NAME, &sentence))?,
                _ => return Err(refused(NAME, USAGE)),
            },
        };
        let default = match more.get(1) {
            None => 0.0,
            Some(default) => match constant(NAME, "the default", default)?.cast_to(&DataType::Float64)? {
                ScalarValue::Float64(default) => default.unwrap_or(f64::NAN),
                _ => return Err(refused(NAME, USAGE)),
            },
        };
        let countable = matches!(aggregate, Aggregate::Count | Aggregate::Dcount);
        if let Some(value) = args.expr_fields.first().map(|field| field.data_type())
            && !(value.is_numeric() || countable)
        {
            return Err(refused(NAME, &format!("{value} can only be counted: use 'count' or 'dcount'")));
        }
        Ok(Box::new(Series { building: Building::new(bins, aggregate), default }))
    }
}

/// Times as the numbers that bins are made of: nanoseconds since the epoch, or whole numbers as they are.
fn positions(times: &ArrayRef) -> Result<ArrayRef> {
    let utc = DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into()));
    let instants = match times.data_type() {
        whole if whole.is_integer() => return Ok(cast(times, &DataType::Int64)?),
        DataType::Date32 | DataType::Date64 => cast(&cast(times, &DataType::Timestamp(TimeUnit::Nanosecond, None))?, &utc)?,
        _ => cast(times, &utc)?,
    };
    Ok(cast(&instants, &DataType::Int64)?)
}

fn position(time: &ScalarValue) -> Result<i64> {
    let positions = positions(&time.to_array()?)?;
    let positions = positions.as_primitive::<Int64Type>();
    if positions.is_null(0) {
        return Err(refused(NAME, "the beginning and the end must be known, not NULL"));
    }
    Ok(positions.value(0))
}

fn length(step: &ScalarValue) -> Result<i64> {
    if step.data_type().is_integer() {
        return position(step);
    }
    match step.cast_to(&DataType::Interval(IntervalUnit::MonthDayNano))? {
        ScalarValue::IntervalMonthDayNano(Some(step)) => nanos(step).map_err(|sentence| refused(NAME, &sentence)),
        _ => Err(refused(NAME, "the step must be known, not NULL")),
    }
}

#[derive(Debug)]
struct Series {
    building: Building,
    default: f64,
}

impl Accumulator for Series {
    fn update_batch(&mut self, arguments: &[ArrayRef]) -> Result<()> {
        let times = positions(&arguments[1])?;
        let times = times.as_primitive::<Int64Type>();
        if arguments[0].data_type().is_numeric() {
            let values = cast(&arguments[0], &DataType::Float64)?;
            for (time, value) in times.iter().zip(values.as_primitive::<Float64Type>()) {
                if let Some(time) = time {
                    self.building.observe(time, value.unwrap_or(f64::NAN));
                }
            }
            return Ok(());
        }
        for_each_value(&arguments[0], None, |row, bytes| {
            if times.is_valid(row) {
                self.building.observe_bytes(times.value(row), bytes);
            }
        })
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let mut states = states[0].as_binary::<i32>().iter().flatten();
        states.try_for_each(|state| self.building.merge_bytes(state).ok_or_else(|| spoilt(NAME)))
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let known = |value: f64| ScalarValue::Float64(value.is_finite().then_some(value));
        let series: Vec<ScalarValue> = self.building.finish(self.default).into_iter().map(known).collect();
        Ok(ScalarValue::List(ScalarValue::new_list_nullable(&series, &DataType::Float64)))
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![ScalarValue::Binary(Some(self.building.to_bytes()))])
    }

    fn size(&self) -> usize {
        size_of::<Self>() + self.building.size()
    }
}
