// Compiles every schema of ../messages with ajv in strict mode: each alone, with the schemas that it
// refers to loaded by id, and all of them in any order.
import assert from 'node:assert/strict';
import {readdirSync, readFileSync} from 'node:fs';
import {test} from 'node:test';

import Ajv from 'ajv/dist/2020.js';

const BASE = 'https://omiappreg.org/keyrotation/schema/messages/';
const read = (folder, name) => JSON.parse(readFileSync(new URL(`${folder}/${name}`, import.meta.url), 'utf8'));
const names = readdirSync(new URL('../messages', import.meta.url)).filter((name) => name.endsWith('.json'));
const strict = {strict: true, allErrors: true};

test('schemas are there', () => assert.ok(names.length > 15));

for (const name of names) {
  test(`${name}, alone`, async () => {
    const schema = read('../messages', name);
    assert.equal(schema.$id, BASE + name);
    const ajv = new Ajv({...strict, loadSchema: async (id) => read('../messages', id.slice(BASE.length))});
    await ajv.compileAsync(schema);
  });
}

for (const [order, list] of Object.entries({forwards: names, backwards: [...names].reverse()})) {
  test(`all, ${order}`, () => {
    const ajv = new Ajv(strict);
    for (const name of list) ajv.addSchema(read('../messages', name));
    for (const name of list) assert.ok(ajv.getSchema(BASE + name), name);
  });
}

test('they tell requests that the registry commits from those that are malformed', () => {
  const ajv = new Ajv(strict);
  for (const name of names) ajv.addSchema(read('../messages', name));
  const seen = {true: 0, false: 0};
  for (const c of read('../../testdata/vectors', 'requests.json').cases) {
    const kind = c.subject.split('.')[3];
    let message;
    try {
      message = JSON.parse(c.message);
    } catch {
      continue; // no JSON at all
    }
    const valid = ajv.getSchema(`${BASE}${kind}.json`)(message);
    if (c.expect === 'committed') assert.ok(valid, c.name);
    seen[valid]++;
  }
  assert.ok(seen.true > 0 && seen.false > 0, JSON.stringify(seen));
});
