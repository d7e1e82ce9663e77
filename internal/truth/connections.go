package truth

import (
	"cmp"
	"slices"
)

// Connection is one open connection of a user.
type Connection struct {
	Node, Conn uint64 // with the uid they name it
	DeviceFlag uint8
}

// Connections is the model that the expected statuses come from: the open connections of each user, counted anew for
// every status. It knows no times: events that are to have no effect because they are late are not told to it. Its zero
// value has no connections and is ready for use.
type Connections struct {
	open map[string][]Connection // by uid, in the order of their opening; no empty slices
}

// Of returns the open connections of uid in the order of their opening. The slice is valid until the next change.
func (c *Connections) Of(uid string) []Connection { return c.open[uid] }

// Open opens a connection: one status; none where it is open already, and with another flag two, its close and its
// opening anew.
func (c *Connections) Open(uid string, conn Connection) []Status {
	var statuses []Status
	if i := c.index(uid, conn.Node, conn.Conn); i >= 0 {
		if c.open[uid][i].DeviceFlag == conn.DeviceFlag {
			return nil
		}
		statuses = c.Close(uid, conn.Node, conn.Conn)
	}
	if c.open == nil {
		c.open = make(map[string][]Connection)
	}
	c.open[uid] = append(c.open[uid], conn)
	return append(statuses, c.status(uid, conn, true))
}

// Close closes a connection: one status; none where it is not open.
func (c *Connections) Close(uid string, node, conn uint64) []Status {
	i := c.index(uid, node, conn)
	if i < 0 {
		return nil
	}
	closed := c.open[uid][i]
	c.open[uid] = slices.Delete(c.open[uid], i, i+1)
	if len(c.open[uid]) == 0 {
		delete(c.open, uid)
	}
	return []Status{c.status(uid, closed, false)}
}

// RestartNode closes all connections of a node, in the order of uid and connection.
func (c *Connections) RestartNode(node uint64) []Status {
	type named struct {
		uid  string
		conn uint64
	}
	var gone []named
	for uid, connections := range c.open {
		for _, conn := range connections {
			if conn.Node == node {
				gone = append(gone, named{uid, conn.Conn})
			}
		}
	}
	slices.SortFunc(gone, func(a, b named) int {
		return cmp.Or(cmp.Compare(a.uid, b.uid), cmp.Compare(a.conn, b.conn))
	})
	var statuses []Status
	for _, g := range gone {
		statuses = append(statuses, c.Close(g.uid, node, g.conn)...)
	}
	return statuses
}

func (c *Connections) index(uid string, node, conn uint64) int {
	return slices.IndexFunc(c.open[uid], func(o Connection) bool { return o.Node == node && o.Conn == conn })
}

func (c *Connections) status(uid string, conn Connection, online bool) Status {
	s := Status{UID: uid, DeviceFlag: conn.DeviceFlag, Online: online, Conn: conn.Conn, Total: len(c.open[uid])}
	for _, o := range c.open[uid] {
		if o.DeviceFlag == conn.DeviceFlag {
			s.Device++
		}
	}
	return s
}
