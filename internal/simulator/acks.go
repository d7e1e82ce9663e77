package simulator

import (
	"bufio"
	"fmt"
	"hash/fnv"
	"io"
	"strconv"
)

// noOffset is the offset of a record that has none yet.
const noOffset = -1

// acks writes what was acknowledged, as Deps.Acks has it. Its user guards it.
type acks struct {
	buf  *bufio.Writer
	line []byte
}

func newAcks(w io.Writer) *acks { return &acks{buf: bufio.NewWriterSize(w, 64<<10)} }

func (a *acks) write(topic string, partition int32, offset int64, value []byte) error {
	b := append(a.line[:0], topic...)
	b = append(b, ' ')
	b = strconv.AppendInt(b, int64(partition), 10)
	b = append(b, ' ')
	b = strconv.AppendInt(b, offset, 10)
	b = append(b, ' ')
	h := fnv.New64a()
	_, _ = h.Write(value) // it never fails
	b = fmt.Appendf(b, "%016x\n", h.Sum64())
	a.line = b
	if _, err := a.buf.Write(b); err != nil {
		return fmt.Errorf("write acknowledgements: %w", err)
	}
	return nil
}

func (a *acks) flush() error {
	if err := a.buf.Flush(); err != nil {
		return fmt.Errorf("write acknowledgements: %w", err)
	}
	return nil
}
