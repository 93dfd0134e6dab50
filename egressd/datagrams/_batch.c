/* Many datagrams with one system call: recvmmsg(2) and sendmmsg(2) for Python.

   Nothing here knows what the octets mean, and nothing is kept between two calls: `plain.py` says the same in Python and
   takes its place where this was not built. No call blocks, so each keeps the interpreter's lock, which also guards the
   buffers. What comes from the network is never read here, only copied, by the lengths that the kernel gave. */

#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <netinet/in.h>
#include <sys/socket.h>

#define MOST 64                     /* datagrams of one system call */
#define OCTETS (MOST * 4352)        /* room for them: 64 of the largest query or answer that egressd reads */

static char room[OCTETS];
static struct sockaddr_in6 names[MOST];
static struct iovec parts[MOST];
static struct mmsghdr headers[MOST];

static PyObject *datagram(const struct mmsghdr *header) {
    const struct msghdr *message = &header->msg_hdr;
    PyObject *data = PyBytes_FromStringAndSize(message->msg_iov->iov_base, header->msg_len);
    socklen_t length = message->msg_namelen < sizeof names[0] ? message->msg_namelen : sizeof names[0];
    PyObject *name = PyBytes_FromStringAndSize(message->msg_name, length);
    PyObject *pair = data && name ? PyTuple_Pack(2, data, name) : NULL;
    Py_XDECREF(data);
    Py_XDECREF(name);
    return pair;
}

PyDoc_STRVAR(receive_doc, "receive(socket, count, size) -> [(data, name), ...]: see plain.py");

static PyObject *receive(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    if (nargs != 3) return PyErr_Format(PyExc_TypeError, "receive takes a socket, a count and a size");
    int fd = PyObject_AsFileDescriptor(args[0]);
    if (fd < 0) return NULL;
    long count = PyLong_AsLong(args[1]), size = PyLong_AsLong(args[2]);
    if (PyErr_Occurred()) return NULL;
    if (count < 1 || count > MOST || size < 1 || size > OCTETS / MOST)
        return PyErr_Format(PyExc_ValueError, "at most %d datagrams of %d octets", MOST, OCTETS / MOST);
    for (long i = 0; i < count; i++) {
        parts[i] = (struct iovec){room + i * size, size};
        headers[i].msg_hdr = (struct msghdr){
            .msg_name = names + i, .msg_namelen = sizeof names[i], .msg_iov = parts + i, .msg_iovlen = 1};
    }
    int found = recvmmsg(fd, headers, count, MSG_DONTWAIT, NULL);
    if (found < 0 && errno != EAGAIN) return PyErr_SetFromErrno(PyExc_OSError);
    PyObject *list = PyList_New(found > 0 ? found : 0);
    for (int i = 0; list && i < found; i++) {
        PyObject *pair = datagram(headers + i);
        if (pair) PyList_SET_ITEM(list, i, pair);
        else Py_CLEAR(list);
    }
    return list;
}

/* The headers of datagrams[at:], at most MOST; how many, or -1 with an exception. The list keeps their octets alive. */
static int lay_out(PyObject *datagrams, Py_ssize_t at) {
    int count = 0;
    for (; count < MOST && at + count < PyList_GET_SIZE(datagrams); count++) {
        PyObject *pair = PyList_GET_ITEM(datagrams, at + count);
        if (!PyTuple_Check(pair) || PyTuple_GET_SIZE(pair) != 2 || !PyBytes_Check(PyTuple_GET_ITEM(pair, 0)) ||
            !PyBytes_Check(PyTuple_GET_ITEM(pair, 1))) {
            PyErr_SetString(PyExc_TypeError, "a datagram is a pair of bytes");
            return -1;
        }
        PyObject *data = PyTuple_GET_ITEM(pair, 0), *name = PyTuple_GET_ITEM(pair, 1);
        parts[count] = (struct iovec){PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data)};
        headers[count].msg_hdr = (struct msghdr){
            .msg_name = PyBytes_GET_SIZE(name) ? PyBytes_AS_STRING(name) : NULL,
            .msg_namelen = PyBytes_GET_SIZE(name), .msg_iov = parts + count, .msg_iovlen = 1};
    }
    return count;
}

static int note(PyObject *failures, Py_ssize_t place, int error) {
    PyObject *pair = Py_BuildValue("ni", place, error);
    int failed = !pair || PyList_Append(failures, pair);
    Py_XDECREF(pair);
    return failed;
}

PyDoc_STRVAR(send_doc, "send(socket, [(data, name), ...]) -> [(place, errno), ...]: see plain.py");

static PyObject *send_all(PyObject *self, PyObject *const *args, Py_ssize_t nargs) {
    if (nargs != 2 || !PyList_Check(args[1])) return PyErr_Format(PyExc_TypeError, "send takes a socket and a list");
    int fd = PyObject_AsFileDescriptor(args[0]);
    if (fd < 0) return NULL;
    PyObject *failures = PyList_New(0);
    for (Py_ssize_t at = 0; failures && at < PyList_GET_SIZE(args[1]);) {
        int count = lay_out(args[1], at);
        int sent = count < 0 ? -1 : sendmmsg(fd, headers, count, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent > 0) {
            at += sent;
        } else if (count < 0 || note(failures, at++, errno)) {  /* the error is the first one's: go on behind it */
            Py_CLEAR(failures);
        }
    }
    return failures;
}

static PyMethodDef methods[] = {
    {"receive", (PyCFunction)(void (*)(void))receive, METH_FASTCALL, receive_doc},
    {"send", (PyCFunction)(void (*)(void))send_all, METH_FASTCALL, send_doc},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_batch", "recvmmsg(2) and sendmmsg(2)", 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__batch(void) { return PyModule_Create(&module); }
