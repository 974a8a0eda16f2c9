// JSON as docs/protocol.md §3 has it: I-JSON (RFC 7493), within limits; and its canonical form (§2,
// RFC 8785).
//
// JSON.parse is no reader for what gets signed: of two members with one name it keeps the last, it
// rounds integers, and it lets half a surrogate pass. Two readers could then see two messages under
// one signature.
import canonicalize from 'canonicalize';

/** §3's limits: of every message. */
export const MESSAGE = {bytes: 8 << 10, depth: 8};
/** §8's limits: of an answer to one's own question. */
export const DOCUMENT = {bytes: 16 << 20, depth: Infinity};

/** What must not be believed, and why: one of the protocol's reason codes (§6), or one like them. */
export class Refusal extends Error {
  /** @param {string} reason @param {string} detail */
  constructor(reason, detail) {
    super(`${reason}: ${detail}`);
    this.reason = reason;
  }
}

const malformed = (/** @type {string} */ detail) => new Refusal('malformed_message', detail);

// One token of RFC 8259, after white space. The empty one is the end.
const STRING = String.raw`"[^"\\\x00-\x1f]*(?:\\(?:["\\/bfnrt]|u[\da-fA-F]{4})[^"\\\x00-\x1f]*)*"`;
const NUMBER = String.raw`-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?`;
const TOKEN = new RegExp(String.raw`[ \t\r\n]*([{}[\]:,]|${STRING}|${NUMBER}|true|false|null|$)`, 'y');

/**
 * Reads one JSON object, strictly. Its objects have no prototype, so a member that is absent is
 * undefined whatever it is called.
 * @param {Uint8Array} bytes
 * @returns {Record<string, any>}
 * @throws {Refusal} malformed_message, or invalid_field for a number beyond §3's bounds
 */
export function parse(bytes, limits = MESSAGE) {
  if (bytes.length > limits.bytes) throw malformed(`it is larger than ${limits.bytes} bytes`);
  const reader = new Reader(decode(bytes), limits.depth);
  const object = reader.value(reader.next(), 1);
  if (!isObject(object)) throw malformed('it is not an object');
  if (reader.next() !== '') throw malformed('something follows the object');
  return object;
}

/** Reads a text token by token. Where a value is read, its first token has been taken. */
class Reader {
  #text;
  #deepest;
  #at = 0;

  /**
   * @param {string} text
   * @param {number} deepest
   */
  constructor(text, deepest) {
    this.#text = text;
    this.#deepest = deepest;
  }

  next() {
    TOKEN.lastIndex = this.#at;
    const match = TOKEN.exec(this.#text);
    if (!match) throw malformed(`the syntax is wrong at character ${this.#at}`);
    this.#at = TOKEN.lastIndex;
    return match[1];
  }

  /**
   * @param {string} token
   * @param {number} depth of the value, if it has any
   * @returns {any}
   */
  value(token, depth) {
    if (token !== '{' && token !== '[') return scalar(token);
    if (depth > this.#deepest) throw malformed(`it is nested more than ${this.#deepest} deep`);
    return token === '{' ? this.#object(depth) : this.#array(depth);
  }

  /** @param {number} depth */
  #object(depth) {
    const members = Object.create(null);
    this.#items('}', (token) => {
      const name = scalar(token);
      if (typeof name !== 'string' || this.next() !== ':') throw malformed('a member is not "name": value');
      if (name in members) throw malformed('a member name occurs twice');
      members[name] = this.value(this.next(), depth + 1);
    });
    return members;
  }

  /** @param {number} depth */
  #array(depth) {
    const items = /** @type {any[]} */ ([]);
    this.#items(']', (token) => items.push(this.value(token, depth + 1)));
    return items;
  }

  /**
   * @param {string} end
   * @param {(token: string) => void} read gets the first token of each item
   */
  #items(end, read) {
    let token = this.next();
    while (token !== end) {
      read(token);
      token = this.next();
      if (token === end) return;
      if (token !== ',') throw malformed('a list has something other than a comma between its items');
      token = this.next();
      if (token === end) throw malformed('a list ends with a comma');
    }
  }
}

/** @param {Uint8Array} bytes */
function decode(bytes) {
  try {
    return new TextDecoder('utf-8', {fatal: true, ignoreBOM: true}).decode(bytes); // a byte order mark is no white space
  } catch {
    throw malformed('it is not UTF-8');
  }
}

/** @param {string} token */
function scalar(token) {
  if (/^[-\d]/.test(token)) return number(token);
  if (!/^["tfn]/.test(token)) throw malformed(token ? `"${token}" stands where a value should` : 'it ends too early');
  const value = JSON.parse(token);
  if (/\p{Surrogate}/u.test(value)) throw malformed('a string has half a surrogate pair');
  if (/\p{Noncharacter_Code_Point}/u.test(value)) throw malformed('a string has a noncharacter');
  return value;
}

/** @param {string} token */
function number(token) {
  const value = Number(token);
  const integer = /^-?\d+$/.test(token);
  if (integer ? !Number.isSafeInteger(value) : !Number.isFinite(value)) {
    throw new Refusal('invalid_field', 'a number is beyond what I-JSON can hold');
  }
  return integer ? value : new Fraction(value);
}

/** A number that is not written as an integer, and so is none for the protocol, whatever its value (§3, Numbers). */
class Fraction {
  /** @param {number} value */
  constructor(value) {
    this.value = value;
  }

  /** What canonical writes. */
  toJSON() {
    return this.value;
  }
}

/**
 * Reports whether a value is one of parse's objects.
 * @param {unknown} value
 */
export function isObject(value) {
  return typeof value === 'object' && value !== null && Object.getPrototypeOf(value) === null;
}

/**
 * Reports whether a value is an integer of the protocol: 0 to 2^53-1 (§1).
 * @param {unknown} value
 */
export function isInteger(value) {
  return Number.isSafeInteger(value) && /** @type {number} */ (value) >= 0 && !Object.is(value, -0);
}

/**
 * The canonical form of a value (RFC 8785): the bytes that are signed (§2).
 * @param {object} value
 */
export function canonical(value) {
  return Buffer.from(/** @type {string} */ (canonicalize(value)), 'utf8');
}
