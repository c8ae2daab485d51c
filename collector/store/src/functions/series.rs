//! KQL's functions of series, which SQL has as lists of numbers: `make_series(…)` or `array_agg(… ORDER BY …)` gives them.
//!
//! NULL in a list is a missing value, there and back. A list that is NULL gives NULL.

use std::sync::Arc;

use deltalake::arrow::array::{
    Array, ArrayRef, AsArray, Float64Array, Float64Builder, Int64Builder, ListArray, ListBuilder, StructArray,
};
use deltalake::arrow::buffer::NullBuffer;
use deltalake::arrow::datatypes::{DataType, Field, Fields, Float64Type, Int64Type};
use deltalake::datafusion::logical_expr::ScalarUDF;
use spanwatch_kql::Compat;
use spanwatch_kql::decompose::{Model, Seasonality, Trend, series_decompose, series_decompose_anomalies};
use spanwatch_kql::fit::series_fit_line;
use spanwatch_kql::outliers::{Method, series_outliers};
use spanwatch_kql::periods::{series_periods_detect, series_periods_validate};

use super::kql::Function;

/// All functions of this module.
pub(crate) fn functions(compat: &Compat) -> Vec<ScalarUDF> {
    ALL.iter().map(|one| ScalarUDF::from(one.function(compat.clone()))).collect()
}

/// What is given after the series, in KQL's order. Not given, or NULL: KQL's default.
#[derive(Clone, Copy)]
enum Parameter {
    Number,
    Whole,
    Word,
}

/// A part of a result.
enum Part {
    Number(f64),
    Series(Vec<f64>),
    Flags(Vec<i8>),
}

#[derive(Clone, Copy)]
enum PartType {
    Number,
    Series,
    Flags,
}

/// One series function.
struct SeriesFunction {
    name: &'static str,
    /// How to call it.
    usage: &'static str,
    parameters: &'static [Parameter],
    /// How many of them must be given.
    required: usize,
    /// The names and types of the parts. A single part without name is the result itself.
    parts: &'static [(&'static str, PartType)],
    body: fn(&[f64], &Arguments<'_>, &Compat) -> Result<Vec<Part>, String>,
}

use Parameter::{Number, Whole, Word};

static ALL: [SeriesFunction; 6] = [
    SeriesFunction {
        name: "series_fit_line",
        usage: "series_fit_line(series)",
        parameters: &[],
        required: 0,
        parts: &[
            ("rsquare", PartType::Number),
            ("slope", PartType::Number),
            ("variance", PartType::Number),
            ("rvariance", PartType::Number),
            ("interception", PartType::Number),
            ("line_fit", PartType::Series),
        ],
        body: |series, _, _| {
            let fit = series_fit_line(series);
            let numbers = [fit.rsquare, fit.slope, fit.variance, fit.rvariance, fit.interception];
            Ok(numbers.into_iter().map(Part::Number).chain([Part::Series(fit.line_fit)]).collect())
        },
    },
    SeriesFunction {
        name: "series_outliers",
        usage: "series_outliers(series, 'ctukey' or 'tukey', value to ignore, lower percentile, upper percentile)",
        parameters: &[Word, Number, Number, Number],
        required: 0,
        parts: &[("", PartType::Series)],
        body: |series, arguments, compat| {
            let method = match (arguments.word(1).unwrap_or("ctukey"), arguments.number(3), arguments.number(4)) {
                ("ctukey", None, None) => Method::CTUKEY,
                ("ctukey", low, high) => Method::ctukey(low.unwrap_or(10.0), high.unwrap_or(90.0))
                    .ok_or("percentiles go from 2 to 98, the lower first")?,
                (name, _, _) => name.parse()?,
            };
            Ok(vec![Part::Series(series_outliers(series, method, arguments.number(2), compat))])
        },
    },
    SeriesFunction {
        name: "series_periods_detect",
        usage: "series_periods_detect(series, shortest period, longest period, how many)",
        parameters: &[Number, Number, Whole],
        required: 3,
        parts: &[("periods", PartType::Series), ("scores", PartType::Series)],
        body: |series, arguments, compat| {
            let count = usize::try_from(arguments.whole(3).unwrap_or(1)).unwrap_or(0).min(PERIODS_MAX);
            let (shortest, longest) = (arguments.number(1).unwrap_or(0.0), arguments.number(2).unwrap_or(f64::INFINITY));
            let found = series_periods_detect(series, shortest, longest, count, compat);
            // Kusto fills up with zeros.
            let filled = |part: fn(&spanwatch_kql::periods::Period) -> f64| {
                let mut values: Vec<f64> = found.iter().map(part).collect();
                values.resize(count, 0.0);
                Part::Series(values)
            };
            Ok(vec![filled(|period| period.length as f64), filled(|period| period.score)])
        },
    },
    SeriesFunction {
        name: "series_periods_validate",
        usage: "series_periods_validate(series, period, …), with at most 16 periods",
        parameters: &[Number; PERIODS_MAX],
        required: 1,
        parts: &[("periods", PartType::Series), ("scores", PartType::Series)],
        body: |series, arguments, compat| {
            let periods: Vec<f64> = (1..arguments.count()).map(|place| arguments.number(place).unwrap_or(f64::NAN)).collect();
            let scores = series_periods_validate(series, &periods, compat);
            Ok(vec![Part::Series(periods), Part::Series(scores)])
        },
    },
    SeriesFunction {
        name: "series_decompose",
        usage: "series_decompose(series, seasonality, trend, test points, seasonality threshold)",
        parameters: &[Whole, Word, Whole, Number],
        required: 0,
        parts: &[
            ("baseline", PartType::Series),
            ("seasonal", PartType::Series),
            ("trend", PartType::Series),
            ("residual", PartType::Series),
        ],
        body: |series, arguments, compat| {
            let parts = series_decompose(series, &model(arguments, [1, 2, 3, 4])?, compat);
            Ok([parts.baseline, parts.seasonal, parts.trend, parts.residual].map(Part::Series).into())
        },
    },
    SeriesFunction {
        name: "series_decompose_anomalies",
        usage: "series_decompose_anomalies(series, threshold, seasonality, trend, test points, 'ctukey' or 'tukey', seasonality threshold)",
        parameters: &[Number, Whole, Word, Whole, Word, Number],
        required: 0,
        parts: &[("ad_flag", PartType::Flags), ("ad_score", PartType::Series), ("baseline", PartType::Series)],
        body: |series, arguments, compat| {
            let model = model(arguments, [2, 3, 4, 6])?;
            let method = arguments.word(5).unwrap_or("ctukey").parse()?;
            let found = series_decompose_anomalies(series, arguments.number(1).unwrap_or(1.5), &model, method, compat);
            Ok(vec![Part::Flags(found.flags), Part::Series(found.scores), Part::Series(found.baseline)])
        },
    },
];

/// As many periods as Kusto takes.
const PERIODS_MAX: usize = 16;

/// The model that the arguments at these places describe.
fn model(arguments: &Arguments<'_>, [seasonality, trend, test_points, threshold]: [usize; 4]) -> Result<Model, String> {
    let test_points = arguments.whole(test_points).unwrap_or(0);
    Ok(Model {
        seasonality: Seasonality::try_from(arguments.whole(seasonality).unwrap_or(-1))?,
        trend: arguments.word(trend).map_or(Ok(Trend::Avg), str::parse)?,
        test_points: usize::try_from(test_points).map_err(|_| format!("{test_points} is no number of points"))?,
        seasonality_threshold: arguments.number(threshold),
    })
}

/// One row of arguments; the series is at place 0.
struct Arguments<'a> {
    arrays: &'a [ArrayRef],
    row: usize,
}

impl<'a> Arguments<'a> {
    fn count(&self) -> usize {
        self.arrays.len()
    }

    fn given(&self, place: usize) -> Option<&'a ArrayRef> {
        self.arrays.get(place).filter(|array| array.is_valid(self.row))
    }

    fn number(&self, place: usize) -> Option<f64> {
        self.given(place).map(|array| array.as_primitive::<Float64Type>().value(self.row))
    }

    fn whole(&self, place: usize) -> Option<i64> {
        self.given(place).map(|array| array.as_primitive::<Int64Type>().value(self.row))
    }

    fn word(&self, place: usize) -> Option<&'a str> {
        self.given(place).map(|array| array.as_string::<i32>().value(self.row))
    }
}

impl SeriesFunction {
    fn function(&'static self, compat: Compat) -> Function {
        Function {
            name: self.name,
            takes: Box::new(|types| self.takes(types)),
            gives: Box::new(|_| self.result_type()),
            body: Box::new(move |arrays| self.apply(arrays, &compat)),
            signature: Function::any(),
        }
    }

    fn takes(&self, types: &[DataType]) -> Result<Vec<DataType>, String> {
        let Some((series, given)) = types.split_first() else { return Err(format!("call it as {}", self.usage)) };
        if !(self.required..=self.parameters.len()).contains(&given.len()) {
            return Err(format!("call it as {}", self.usage));
        }
        match series {
            DataType::Null => {}
            DataType::List(item) | DataType::LargeList(item) | DataType::FixedSizeList(item, _)
                if item.data_type().is_numeric() || *item.data_type() == DataType::Null => {}
            other => return Err(format!("a series is a list of numbers, as make_series() gives, not {other}")),
        }
        let mut to = vec![list_type(DataType::Float64)];
        for (place, (parameter, given)) in self.parameters.iter().zip(given).enumerate() {
            let fits = match parameter {
                Number | Whole => given.is_numeric(),
                Word => given.is_string(),
            };
            if !fits && *given != DataType::Null {
                return Err(format!("argument {} does not fit; call it as {}", place + 2, self.usage));
            }
            to.push(match parameter {
                Number => DataType::Float64,
                Whole => DataType::Int64,
                Word => DataType::Utf8,
            });
        }
        Ok(to)
    }

    fn result_type(&self) -> DataType {
        match self.parts {
            [("", part)] => part.data_type(),
            _ => DataType::Struct(self.fields()),
        }
    }

    fn fields(&self) -> Fields {
        self.parts.iter().map(|(name, part)| Field::new(*name, part.data_type(), true)).collect()
    }

    fn apply(&self, arrays: &[ArrayRef], compat: &Compat) -> Result<ArrayRef, String> {
        let [series, ..] = arrays else { return Err(format!("call it as {}", self.usage)) };
        let series = series.as_list::<i32>();
        let mut columns: Vec<Column> = self.parts.iter().map(|(_, part)| part.column()).collect();
        for row in 0..series.len() {
            if series.is_null(row) {
                columns.iter_mut().for_each(Column::push_null);
                continue;
            }
            let parts = (self.body)(&values(series, row), &Arguments { arrays, row }, compat)?;
            columns.iter_mut().zip(&parts).for_each(|(column, part)| column.push(part));
        }
        let mut finished: Vec<ArrayRef> = columns.into_iter().map(Column::finish).collect();
        match self.parts {
            [("", _)] => finished.pop().ok_or_else(|| "gave nothing".to_owned()),
            _ => {
                let nulls = NullBuffer::from((0..series.len()).map(|row| series.is_valid(row)).collect::<Vec<bool>>());
                let parts = StructArray::try_new(self.fields(), finished, Some(nulls)).map_err(|error| error.to_string())?;
                Ok(Arc::new(parts))
            }
        }
    }
}

impl PartType {
    fn data_type(self) -> DataType {
        match self {
            Self::Number => DataType::Float64,
            Self::Series => list_type(DataType::Float64),
            Self::Flags => list_type(DataType::Int64),
        }
    }

    fn column(self) -> Column {
        match self {
            Self::Number => Column::Number(Float64Builder::new()),
            Self::Series => Column::Series(ListBuilder::new(Float64Builder::new())),
            Self::Flags => Column::Flags(ListBuilder::new(Int64Builder::new())),
        }
    }
}

/// The same part of each row.
enum Column {
    Number(Float64Builder),
    Series(ListBuilder<Float64Builder>),
    Flags(ListBuilder<Int64Builder>),
}

impl Column {
    fn push(&mut self, part: &Part) {
        match (self, part) {
            (Self::Number(column), Part::Number(number)) => column.append_option(known(*number)),
            (Self::Series(column), Part::Series(values)) => column.append_value(values.iter().map(|&value| known(value))),
            (Self::Flags(column), Part::Flags(flags)) => column.append_value(flags.iter().map(|&flag| Some(i64::from(flag)))),
            (column, _) => column.push_null(),
        }
    }

    fn push_null(&mut self) {
        match self {
            Self::Number(column) => column.append_null(),
            Self::Series(column) => column.append_null(),
            Self::Flags(column) => column.append_null(),
        }
    }

    fn finish(self) -> ArrayRef {
        match self {
            Self::Number(mut column) => Arc::new(column.finish()),
            Self::Series(mut column) => Arc::new(column.finish()),
            Self::Flags(mut column) => Arc::new(column.finish()),
        }
    }
}

/// A missing value is NULL here, and not a number there.
fn known(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}

fn values(series: &ListArray, row: usize) -> Vec<f64> {
    let values = series.value(row);
    let values: &Float64Array = values.as_primitive();
    values.iter().map(|value| value.unwrap_or(f64::NAN)).collect()
}

/// A list as the engine names its items.
pub(crate) fn list_type(item: DataType) -> DataType {
    DataType::List(Arc::new(Field::new_list_field(item, true)))
}
