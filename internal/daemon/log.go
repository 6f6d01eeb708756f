// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"time"

	"github.com/spf13/pflag"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/netbackd/netbackd/internal/command"
	"github.com/netbackd/netbackd/internal/logsink"
)

// LogFlags are the flags of the log.
type LogFlags struct{ Level, Format string }

// Add adds the flags to a command's.
func (f *LogFlags) Add(fl *pflag.FlagSet) {
	fl.StringVar(&f.Level, "log-level", "info", "`level` of the log: debug, info, warn or error")
	fl.StringVar(&f.Format, "log-format", "console", "`format` of the log: console or json")
}

// stderr is the file that the log is written to.
const stderr = 2

// newLogger makes the log and its sink.
func newLogger(f LogFlags) (*zap.Logger, *logsink.Sink, error) {
	level, err := zapcore.ParseLevel(f.Level)
	if err != nil {
		return nil, nil, command.Usagef("--log-level is %q, want debug, info, warn or error", f.Level)
	}
	cfg := zap.NewProductionEncoderConfig()
	cfg.EncodeTime = zapcore.ISO8601TimeEncoder
	var lines zapcore.Encoder
	switch f.Format {
	case "console":
		cfg.EncodeLevel = zapcore.CapitalLevelEncoder
		lines = zapcore.NewConsoleEncoder(cfg)
	case "json":
		lines = zapcore.NewJSONEncoder(cfg)
	default:
		return nil, nil, command.Usagef("--log-format is %q, want console or json", f.Format)
	}
	sink := logsink.New(stderr, lostNote(lines))
	return zap.New(zapcore.NewCore(lines, sink, level), zap.ErrorOutput(sink)), sink, nil
}

// lostNote returns a function that makes the log line about lost lines.
func lostNote(lines zapcore.Encoder) logsink.Note {
	return func(n uint64, cause error) []byte {
		e := zapcore.Entry{Level: zap.WarnLevel, Time: time.Now(), Message: "lines of the log were lost"}
		b, err := lines.EncodeEntry(e, []zap.Field{zap.Uint64("lines", n), zap.Error(cause)})
		if err != nil {
			return nil
		}
		return b.Bytes()
	}
}
